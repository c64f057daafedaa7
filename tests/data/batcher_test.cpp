#include "data/batcher.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "core/text_file.h"
#include "data/packing.h"
#include "data/permutation.h"
#include "data/trace_reader.h"
#include "data/trace_writer.h"
#include "tests/data/expect_error.h"
#include "tests/data/sample_traces.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using testing::HasSubstr;

bool equal(const TrainingBatch& a, const TrainingBatch& b) {
  return a.documents == b.documents && a.tokens.equal(b.tokens) && a.positions.equal(b.positions) &&
         a.sequence_offsets.equal(b.sequence_offsets) && a.labels.equal(b.labels) && a.loss_mask.equal(b.loss_mask) &&
         a.target_rows.equal(b.target_rows) && a.target_offsets.equal(b.target_offsets) &&
         a.target_ids.equal(b.target_ids) && a.target_weights.equal(b.target_weights) &&
         a.target_uncovered.equal(b.target_uncovered);
}

class BatcherTest : public testing::Test {
 protected:
  void write(size_t documents, uint32_t max_completion = 12, uint64_t documents_per_shard = 40) {
    TraceWriter writer(folder_.path() / "set", provenance_,
                       {.documents_per_shard = documents_per_shard, .entropy_coded = false});
    for (const Trace& trace : sample_traces(documents, provenance_, max_completion)) writer.append(trace);
    writer.finish();
    reader_ = std::make_shared<const TraceReader>(TraceReader::open(folder_.path() / "set"));
  }
  TemporaryFolder folder_{TemporaryFolder::memory()};
  TraceProvenance provenance_ = sample_provenance("topk:2");
  std::shared_ptr<const TraceReader> reader_;
};

TEST_F(BatcherTest, ServesTheSameBatchesFromOtherShards) {
  const auto batches_of = [&](const std::vector<Trace>& traces, uint64_t documents_per_shard, const char* name) {
    TraceWriter writer(folder_.path() / name, provenance_, {.documents_per_shard = documents_per_shard});
    for (const Trace& trace : traces) writer.append(trace);
    writer.finish();
    Batcher batcher(std::make_shared<const TraceReader>(TraceReader::open(folder_.path() / name)), {.max_tokens = 64});
    std::vector<at::Tensor> tokens;
    for (int i = 0; i < 12; ++i) tokens.push_back(batcher.next().tokens);
    return tokens;
  };
  std::vector<Trace> traces = sample_traces(30, provenance_, 12);
  const auto expected = batches_of(traces, 40, "one");
  std::ranges::reverse(traces);
  const auto found = batches_of(traces, 7, "several");
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(found[i].equal(expected[i])) << "batch " << i;
}

TEST_F(BatcherTest, LaysOutTokensLabelsAndTargetsOfEachDocument) {
  write(30);
  Batcher batcher(reader_, {.max_tokens = 64});
  for (int i = 0; i < 5; ++i) {
    const TrainingBatch batch = batcher.next();
    const auto offsets = batch.sequence_offsets.to(at::kLong);
    ASSERT_EQ(offsets.size(0), static_cast<int64_t>(batch.documents.size()) + 1);
    ASSERT_LE(batch.tokens.size(0), 64);
    int64_t target = 0;
    for (size_t d = 0; d < batch.documents.size(); ++d) {
      const Trace trace = reader_->read(batch.documents[d]);
      const auto& tokens = trace.document.tokens;
      const auto begin = offsets[static_cast<int64_t>(d)].item<int64_t>();
      ASSERT_EQ(offsets[static_cast<int64_t>(d) + 1].item<int64_t>() - begin, static_cast<int64_t>(tokens.size()) - 1);
      for (int64_t t = 0; t + 1 < static_cast<int64_t>(tokens.size()); ++t) {
        const bool completion = t + 1 >= trace.document.prompt_length;
        EXPECT_EQ(batch.tokens[begin + t].item<int64_t>(), tokens[t]);
        EXPECT_EQ(batch.positions[begin + t].item<int64_t>(), t);
        EXPECT_EQ(batch.labels[begin + t].item<int64_t>(), completion ? tokens[t + 1] : -100);
        EXPECT_EQ(batch.loss_mask[begin + t].item<bool>(), completion);
        if (!completion) continue;
        const TargetDistribution expected = trace.targets[t + 1 - trace.document.prompt_length];
        EXPECT_EQ(batch.target_rows[target].item<int64_t>(), begin + t);
        const auto first = batch.target_offsets[target].item<int64_t>();
        ASSERT_EQ(batch.target_offsets[target + 1].item<int64_t>() - first, static_cast<int64_t>(expected.ids.size()));
        for (size_t j = 0; j < expected.ids.size(); ++j) {
          EXPECT_EQ(batch.target_ids[first + static_cast<int64_t>(j)].item<int64_t>(), expected.ids[j]);
          EXPECT_EQ(batch.target_weights[first + static_cast<int64_t>(j)].item<float>(), expected.weights[j]);
        }
        EXPECT_EQ(batch.target_uncovered[target].item<float>(), expected.uncovered);
        ++target;
      }
    }
    EXPECT_EQ(batch.target_rows.size(0), target);
  }
}

TEST_F(BatcherTest, ReadsTheHiddenStatesOfTheLayersThatAreAskedFor) {
  for (const auto type : {HiddenType::kBf16, HiddenType::kFp8}) {
    provenance_ = with_hidden_states(sample_provenance("topk:2"), type, 150);
    std::filesystem::remove_all(folder_.path() / "set");
    write(30);
    const HiddenStatesSpec& spec = *provenance_.hidden_states;
    std::vector<float> expected(150);
    Batcher batcher(reader_, {.max_tokens = 16, .hidden_layers = {3, 0}});  // some documents are cut
    for (int i = 0; i < 20; ++i) {
      const TrainingBatch batch = batcher.next();
      ASSERT_EQ(batch.hidden_states.size(), 2U);
      for (const at::Tensor& states : batch.hidden_states) {
        ASSERT_THAT(states.sizes(), testing::ElementsAre(batch.target_rows.size(0), 150));
      }
      int64_t target = 0;
      for (const size_t document : batch.documents) {
        const auto stored = reader_->hidden_states(document);
        const auto [prompt, completion] = reader_->lengths(document);
        for (int32_t j = 0; j < std::min(completion, 16 - (prompt - 1)); ++j, ++target) {
          const auto position = stored.subspan(static_cast<size_t>(j) * spec.position_bytes(), spec.position_bytes());
          for (const auto& [index, tensor] : {std::pair{2, 0}, {0, 1}}) {
            spec.decode(position, static_cast<size_t>(index), expected);
            ASSERT_TRUE(batch.hidden_states[static_cast<size_t>(tensor)][target].equal(at::tensor(expected)));
          }
        }
      }
      EXPECT_EQ(target, batch.target_rows.size(0));
    }
  }
  EXPECT_THAT(error_of([&] { Batcher(reader_, {.hidden_layers = {1}}); }), HasSubstr("no hidden states of layer 1"));
}

TEST_F(BatcherTest, LeavesHiddenStatesUnreadUnlessTheyAreAskedFor) {
  provenance_ = with_hidden_states(provenance_);
  write(4);
  const auto path = folder_.path() / "set/shard-00000.h5";
  std::string contents = core::read_file(path);
  for (size_t i = 0; i < reader_->size(); ++i) {
    const auto states = reader_->hidden_states(i);
    contents[contents.find(std::string_view(reinterpret_cast<const char*>(states.data()), states.size()))] ^= 1;
  }
  std::ofstream(path, std::ios::binary | std::ios::trunc) << contents;
  reader_ = std::make_shared<const TraceReader>(TraceReader::open(path));
  EXPECT_TRUE(Batcher(reader_, {.max_tokens = 64}).next().hidden_states.empty());
  EXPECT_THAT(error_of([&] { Batcher(reader_, {.max_tokens = 64, .hidden_layers = {2}}).next(); }),
              HasSubstr("its hidden states' checksum does not match"));
}

TEST_F(BatcherTest, ServesEveryDocumentOncePerEpochInAnotherOrderEachTime) {
  write(200);
  Batcher batcher(reader_, {.max_tokens = 100});
  std::vector<std::vector<size_t>> orders;
  for (int epoch = 0; epoch < 3; ++epoch) {
    auto& order = orders.emplace_back();
    while (const auto batch = batcher.next_in_epoch()) {
      order.insert(order.end(), batch->documents.begin(), batch->documents.end());
    }
    EXPECT_EQ(order.size(), 200);
    EXPECT_EQ(std::set<size_t>(order.begin(), order.end()).size(), 200);
  }
  EXPECT_NE(orders[0], orders[1]);
  EXPECT_NE(orders[1], orders[2]);
  EXPECT_EQ(batcher.documents(), 200);
  EXPECT_EQ(batcher.targets(), reader_->completion_tokens());

  // next() goes through the same stream.
  Batcher endless(reader_, {.max_tokens = 100});
  std::vector<size_t> seen;
  while (seen.size() < 400) {
    const auto batch = endless.next();
    seen.insert(seen.end(), batch.documents.begin(), batch.documents.end());
  }
  orders[0].insert(orders[0].end(), orders[1].begin(), orders[1].end());
  EXPECT_EQ(seen, orders[0]);
}

TEST_F(BatcherTest, WastesLessThanTwoPercentOfABatch) {
  write(3000, 200, UINT64_MAX);
  Batcher batcher(reader_, {.max_tokens = 2048});
  int64_t used = 0, batches = 0;
  while (const auto batch = batcher.next_in_epoch()) {
    used += batch->tokens.size(0);
    ++batches;
  }
  EXPECT_GE(static_cast<double>(used) / static_cast<double>(2048 * batches), 0.98);
}

TEST_F(BatcherTest, ContinuesExactlyFromASavedState) {
  write(120);
  const BatcherOptions options{.max_tokens = 50, .seed = 3};
  Batcher reference(reader_, options);
  std::vector<TrainingBatch> batches;
  std::vector<BatcherState> states;
  for (int i = 0; i < 60; ++i) {
    states.push_back(reference.state());
    batches.push_back(reference.next());
  }
  for (size_t i = 0; i < batches.size(); i += 7) {
    Batcher resumed(reader_, options);
    resumed.restore(BatcherState::from_json(states[i].to_json()));
    for (size_t j = i; j < batches.size(); ++j) ASSERT_TRUE(equal(resumed.next(), batches[j])) << i << ' ' << j;
  }
  Batcher other(reader_, options);
  EXPECT_THAT(error_of([&] { other.restore({.window = 7}); }), HasSubstr("window 7"));
  EXPECT_THAT(error_of([&] {
                BatcherState::from_json({{"epoch", -1}, {"window", 0}, {"batch", 0}});
              }),
              HasSubstr("epoch"));
}

TEST_F(BatcherTest, GivesEachRankItsOwnBatchesWithoutOverlapOrLoss) {
  write(100);
  const auto stream = [&](int64_t rank, int64_t world, const BatcherState& from, size_t count) {
    Batcher batcher(reader_, {.max_tokens = 40, .rank = rank, .world = world});
    batcher.restore(from);
    std::vector<std::vector<size_t>> result;
    for (size_t i = 0; i < count; ++i) result.push_back(batcher.next().documents);
    return std::pair(result, batcher.state());
  };
  const auto all = stream(0, 1, {}, 90).first;
  for (const int64_t world : {2, 3, 5, 31}) {
    const size_t each = all.size() / static_cast<size_t>(world);
    for (int64_t rank = 0; rank < world; ++rank) {
      const auto own = stream(rank, world, {}, each).first;
      for (size_t i = 0; i < each; ++i)
        EXPECT_EQ(own[i], all[i * static_cast<size_t>(world) + static_cast<size_t>(rank)]);
    }
  }
  // A state saved by any rank of one world continues in another.
  const BatcherState saved = stream(1, 2, {}, 6).second;
  EXPECT_EQ(saved.to_json(), stream(0, 2, {}, 6).second.to_json());
  EXPECT_EQ(stream(2, 3, saved, 1).first[0], all[12 + 2]);

  for (const int64_t world : {1, 4, 7}) {
    std::multiset<size_t> served;
    for (int64_t rank = 0; rank < world; ++rank) {
      Batcher batcher(reader_, {.max_tokens = 40, .rank = rank, .world = world});
      while (const auto batch = batcher.next_in_epoch())
        served.insert(batch->documents.begin(), batch->documents.end());
    }
    EXPECT_EQ(served.size(), 100);
    EXPECT_EQ(std::set<size_t>(served.begin(), served.end()).size(), 100);
  }
}

TEST_F(BatcherTest, SplitsByPromptIntoTrainingAndValidation) {
  write(400);
  const auto served = [&](bool validation) {
    Batcher batcher(reader_, {.max_tokens = 64, .seed = 5, .validation_share = 0.2, .validation = validation});
    std::set<std::string> prompts;
    uint64_t documents = 0;
    while (const auto batch = batcher.next_in_epoch()) {
      for (const size_t index : batch->documents) prompts.insert(reader_->prompt_id(index));
      documents += batch->documents.size();
    }
    EXPECT_EQ(documents, batcher.documents());
    EXPECT_EQ(documents, 2 * prompts.size());
    return prompts;
  };
  const auto training = served(false), validation = served(true);
  EXPECT_EQ(training.size() + validation.size(), 200);
  EXPECT_NEAR(static_cast<double>(validation.size()), 40, 20);
  for (const std::string& prompt : validation) EXPECT_FALSE(training.contains(prompt));
  EXPECT_THAT(error_of([&] { Batcher(reader_, {.validation = true}); }),
              HasSubstr("none of the 400 documents is for validation"));
}

TEST_F(BatcherTest, CutsLongDocumentsAndLeavesOutThoseWithoutTargets) {
  write(200, 40);
  Batcher batcher(reader_, {.max_tokens = 6});
  uint64_t documents = 0, targets = 0;
  while (const auto batch = batcher.next_in_epoch()) {
    ASSERT_LE(batch->tokens.size(0), 6);
    documents += batch->documents.size();
    targets += static_cast<uint64_t>(batch->target_rows.size(0));
    for (const size_t index : batch->documents) EXPECT_LE(reader_->lengths(index).prompt, 6);
  }
  EXPECT_LT(documents, 200);
  EXPECT_EQ(documents, batcher.documents());
  EXPECT_EQ(targets, batcher.targets());
  EXPECT_THAT(error_of([&] { Batcher(reader_, {.max_tokens = 0}); }), HasSubstr("batches of 0 tokens"));
  EXPECT_THAT(error_of([&] { Batcher(reader_, {.rank = 2, .world = 2}); }), HasSubstr("rank 2 of 2"));
}

TEST(Permutation, VisitsEveryElementOnce) {
  for (const uint64_t size : {1, 2, 3, 16, 17, 1000, 4097}) {
    std::set<uint64_t> seen;
    const Permutation order(size, 11), other(size, 12);
    uint64_t same = 0;
    for (uint64_t i = 0; i < size; ++i) {
      ASSERT_LT(order(i), size);
      seen.insert(order(i));
      same += order(i) == other(i);
    }
    EXPECT_EQ(seen.size(), size);
    if (size >= 16) {
      EXPECT_LT(same, size / 2);
    }
  }
}

TEST(Pack, FillsBinsWithoutOverflow) {
  core::Philox random(1, 2, 3);
  std::vector<int64_t> lengths(1000);
  for (int64_t& length : lengths) length = 1 + random.next_below(50);
  const auto bins = pack(lengths, 100);
  std::set<uint32_t> seen;
  int64_t total = 0;
  for (const auto& bin : bins) {
    int64_t sum = 0;
    for (const uint32_t piece : bin) {
      sum += lengths[piece];
      seen.insert(piece);
    }
    EXPECT_LE(sum, 100);
    total += sum;
  }
  EXPECT_EQ(seen.size(), 1000);
  EXPECT_GE(static_cast<double>(total) / static_cast<double>(100 * bins.size()), 0.98);
}

}  // namespace
}  // namespace distill::data
