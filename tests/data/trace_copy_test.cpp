#include "data/trace_copy.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <set>

#include "core/text_file.h"
#include "data/safetensors.h"
#include "data/trace_export.h"
#include "data/trace_reader.h"
#include "data/trace_shard.h"
#include "data/trace_statistics.h"
#include "data/trace_writer.h"
#include "tests/data/expect_error.h"
#include "tests/data/sample_traces.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

class TraceCopyTest : public testing::Test {
 protected:
  fs::path write(const std::string& name, size_t first, size_t last, uint64_t per_shard = UINT64_MAX) const {
    const auto traces = sample_traces(last, provenance_, 30);
    TraceWriter writer(folder_.path() / name, provenance_, {.documents_per_shard = per_shard});
    for (size_t i = first; i < last; ++i) writer.append(traces[i]);
    writer.finish();
    return folder_.path() / name;
  }
  // That `copy` holds the documents of the sources, with the same targets.
  void expect_same(const fs::path& copy, const std::vector<fs::path>& sources) const {
    std::map<TraceKey, Trace> expected;
    for (const auto& source : sources) {
      const auto reader = TraceReader::open(source);
      for (size_t i = 0; i < reader.size(); ++i) {
        Trace trace = reader.read(i);
        const auto states = reader.hidden_states(i);
        trace.hidden_states.assign(states.begin(), states.end());
        const TraceKey key = trace.document.key;
        expected.emplace(key, std::move(trace));
      }
    }
    const auto reader = TraceReader::open(copy);
    ASSERT_EQ(reader.size(), expected.size());
    for (size_t i = 0; i < reader.size(); ++i) {
      const Trace actual = reader.read(i), &original = expected.at(actual.document.key);
      EXPECT_EQ(actual.document.tokens, original.document.tokens);
      EXPECT_TRUE(std::ranges::equal(reader.hidden_states(i), original.hidden_states));
      ASSERT_EQ(actual.targets.offsets, original.targets.offsets);
      for (size_t position = 0; position < actual.targets.positions(); ++position) {
        EXPECT_EQ(weights_of(actual.targets[position]), weights_of(original.targets[position]));
      }
    }
  }
  static std::map<int32_t, int> weights_of(const TargetDistribution& target) {
    std::map<int32_t, int> result;  // in millionths
    for (size_t i = 0; i < target.ids.size(); ++i) {
      result[target.ids[i]] = static_cast<int>(std::lround(1e5 * static_cast<double>(target.weights[i])));
    }
    return result;
  }
  TemporaryFolder folder_{TemporaryFolder::memory()};
  TraceProvenance provenance_ = sample_provenance("threshold:0.05", 300);
};

TEST_F(TraceCopyTest, MergesSetsAndSplitsThemAgain) {
  const auto a = write("a", 0, 10, 4), b = write("b", 10, 20);
  const auto merged = folder_.path() / "merged", split = folder_.path() / "split";
  EXPECT_EQ(copy_traces(std::vector{a, b}, merged, {}).copied, 20);
  EXPECT_EQ(shard_files(merged).size(), 1);
  expect_same(merged, {a, b});
  copy_traces(std::vector{merged}, split, {.documents_per_shard = 3});
  EXPECT_EQ(shard_files(split).size(), 7);
  expect_same(split, {merged});
  EXPECT_EQ(copy_traces(std::vector{merged}, split, {.documents_per_shard = 3}).copied, 20);  // is there already
  EXPECT_THAT(error_of([&] {
                copy_traces(std::vector{a, merged}, folder_.path() / "twice", {});
              }),
              HasSubstr("is in what is copied before it too"));
  EXPECT_THAT(error_of([&] { copy_traces(std::vector{a}, merged, {}); }), HasSubstr("holds 10 documents that are not"));
}

TEST_F(TraceCopyTest, TakesHiddenStatesAlong) {
  provenance_ = with_hidden_states(provenance_);
  const auto a = write("a", 0, 10, 4), b = write("b", 10, 20);
  const auto merged = folder_.path() / "merged", split = folder_.path() / "split", good = folder_.path() / "good";
  copy_traces(std::vector{a, b}, merged, {});
  ASSERT_FALSE(TraceReader::open(merged).hidden_states(0).empty());
  expect_same(merged, {a, b});
  copy_traces(std::vector{merged}, split, {.documents_per_shard = 3});
  expect_same(split, {merged});
  copy_traces(std::vector{merged}, good, {.wanted = [](const TraceDocument& d) { return d.key.sample == 0; }});
  const auto reader = TraceReader::open(good), all = TraceReader::open(merged);
  for (size_t i = 0; i < reader.size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(reader.hidden_states(i), all.hidden_states(2 * i)));
  }
  provenance_.hidden_states->type = HiddenType::kFp8;
  const auto other = write("other", 20, 24);
  EXPECT_THAT(error_of([&] {
                copy_traces(std::vector{a, other}, folder_.path() / "mixed", {});
              }),
              HasSubstr("hidden_states dtype: \"bf16\" against \"fp8\""));
}

TEST_F(TraceCopyTest, RepairLosesADocumentWhoseHiddenStatesAreDamaged) {
  provenance_ = with_hidden_states(provenance_);
  const auto source = write("damaged", 0, 6);
  const fs::path shard = source / "shard-00000.h5";
  std::string contents = core::read_file(shard);
  const auto reader = TraceReader::open(source);
  const auto states = reader.hidden_states(2);
  contents[contents.find(std::string_view(reinterpret_cast<const char*>(states.data()), states.size())) + 9] ^= 1;
  std::ofstream(shard, std::ios::binary | std::ios::trunc) << contents;
  EXPECT_THAT(error_of([&] { verify_traces(TraceReader::open(source)); }), HasSubstr("shard-00000.h5, document 2"));
  EXPECT_THAT(error_of([&] { copy_traces(std::vector{source}, folder_.path() / "copy", {}); }),
              HasSubstr("document 2"));
  const auto summary = repair_traces(source, folder_.path() / "repaired");
  EXPECT_EQ(summary.copied, 5U);
  ASSERT_EQ(summary.damage.size(), 1U);
  EXPECT_THAT(summary.damage[0], HasSubstr("its hidden states' checksum does not match"));
  EXPECT_EQ(TraceReader::open(folder_.path() / "repaired").size(), 5U);
}

TEST_F(TraceCopyTest, ExportsAndMeasuresHiddenStates) {
  for (const auto type : {HiddenType::kBf16, HiddenType::kFp8}) {
    provenance_ = with_hidden_states(sample_provenance(), type, 200);
    const auto set = write(std::string(to_string(type)), 0, 6, 4);
    const auto reader = TraceReader::open(set);
    export_safetensors(reader, folder_.path() / "set.safetensors");
    const auto file = open_safetensors(folder_.path() / "set.safetensors");
    at::Tensor states = file->load("hidden_states").to(at::kFloat);
    const auto positions = static_cast<int64_t>(reader.completion_tokens());
    ASSERT_THAT(states.sizes(), testing::ElementsAre(positions, 3, 200));
    if (type == HiddenType::kFp8) {
      const at::Tensor scales = file->load("hidden_scales");
      ASSERT_THAT(scales.sizes(), testing::ElementsAre(positions, 3, 2));
      states = states * scales.repeat_interleave(128, 2).narrow(2, 0, 200);
    }
    const HiddenStatesSpec& spec = *provenance_.hidden_states;
    std::vector<float> expected(200);
    int64_t position = 0;
    for (size_t i = 0; i < reader.size(); ++i) {
      auto stored = reader.hidden_states(i);
      for (; !stored.empty(); stored = stored.subspan(spec.position_bytes()), ++position) {
        for (size_t layer = 0; layer < 3; ++layer) {
          spec.decode(stored.first(spec.position_bytes()), layer, expected);
          ASSERT_TRUE(states[position][static_cast<int64_t>(layer)].equal(at::tensor(expected)));
        }
      }
    }
    EXPECT_EQ(position, positions);
    EXPECT_EQ(measure_traces(reader)["bytes_per_token"]["hidden"].get<double>(),
              static_cast<double>(spec.position_bytes()));
    verify_traces(reader);
  }
}

TEST_F(TraceCopyTest, CopiesOnlyWhatIsWanted) {
  const auto all = write("all", 0, 30);
  const auto good = folder_.path() / "good";
  const auto correct = [](const TraceDocument& document) { return document.verdict == Verdict::kCorrect; };
  const auto summary = copy_traces(std::vector{all}, good, {.wanted = correct});
  EXPECT_EQ(summary.copied + summary.left_out, 30);
  const auto reader = TraceReader::open(good);
  EXPECT_EQ(reader.size(), summary.copied);
  for (size_t i = 0; i < reader.size(); ++i) EXPECT_TRUE(correct(reader.read_document(i)));
}

TEST_F(TraceCopyTest, PrefersTheShortestOfTheCompletionsOfAPrompt) {
  std::vector<Trace> traces;
  for (uint32_t sample = 0; sample < 6; ++sample) traces.push_back(sample_trace("prompt", sample, provenance_, 30));
  // The same answer twice.
  traces[5] = traces[4];
  traces[5].document.key.sample = 5;
  TraceWriter writer(folder_.path() / "set", provenance_);
  for (const Trace& trace : traces) writer.append(trace);
  writer.finish();
  const auto lengths = [&](const TraceCopyOptions& options) {
    std::filesystem::remove_all(folder_.path() / "chosen");
    copy_traces(std::vector{folder_.path() / "set"}, folder_.path() / "chosen", options);
    const auto reader = TraceReader::open(folder_.path() / "chosen");
    std::multiset<int32_t> result;
    for (size_t i = 0; i < reader.size(); ++i) result.insert(reader.lengths(i).completion);
    return result;
  };
  std::multiset<int32_t> all;
  for (const Trace& trace : traces) all.insert(trace.document.completion_length());
  EXPECT_EQ(lengths({}), all);
  all.erase(all.find(traces[5].document.completion_length()));
  EXPECT_EQ(lengths({.unique = true}), all);
  EXPECT_EQ(lengths({.unique = true, .per_prompt = 3}), std::multiset<int32_t>(all.begin(), std::next(all.begin(), 3)));
}

TEST_F(TraceCopyTest, RepairsAShardWithOneFlippedByteAnywhere) {
  const auto source = write("damaged", 0, 6);
  const fs::path shard = source / "shard-00000.h5";
  const std::string contents = core::read_file(shard);
  std::array<uint64_t, 2> place;  // of the payload
  std::memcpy(place.data(), contents.data() + trace_format::kRegionsAt + 16 * trace_format::kPayload, 16);
  ASSERT_GT(place[1], contents.size() / 50);
  size_t repaired = 0, unreadable = 0;
  for (size_t byte = 0; byte < contents.size(); byte += 7) {
    std::string copy = contents;
    copy[byte] ^= 0x20;
    std::ofstream(shard, std::ios::binary | std::ios::trunc) << copy;
    const fs::path out = folder_.path() / "repaired";
    fs::remove_all(out);
    TraceCopySummary summary;
    if (const std::string error = error_of([&] { summary = repair_traces(source, out); }); !error.empty()) {
      EXPECT_THAT(error, HasSubstr("no shard can be repaired"));
      ++unreadable;
      continue;
    }
    ++repaired;
    // An offset belongs to two documents; a table that all share makes all unreadable at worst.
    EXPECT_EQ(summary.copied + summary.damage.size(), 6) << byte;
    if (byte >= place[0] && byte < place[0] + place[1]) {
      EXPECT_EQ(summary.copied, 5) << byte;
    }
  }
  EXPECT_GT(repaired, 4 * unreadable);
}

TEST_F(TraceCopyTest, SavesTheDocumentsBeforeTheCut) {
  const auto source = write("cut", 0, 6);
  const fs::path shard = source / "shard-00000.h5";
  std::array<uint64_t, 2> place;  // of the payload
  std::memcpy(place.data(), core::read_file(shard).data() + trace_format::kRegionsAt + 16 * trace_format::kPayload, 16);
  fs::resize_file(shard, place[0] + place[1] / 2);
  EXPECT_THAT(error_of([&] { TraceReader::open(source); }), HasSubstr("the file was cut"));
  const auto summary = repair_traces(source, folder_.path() / "repaired");
  EXPECT_GE(summary.copied, 1);
  EXPECT_LT(summary.copied, 6);
  EXPECT_EQ(summary.copied + summary.damage.size(), 6);
  EXPECT_THAT(summary.damage.back(), HasSubstr("document 5"));
  EXPECT_EQ(TraceReader::open(folder_.path() / "repaired").size(), summary.copied);
}

}  // namespace
}  // namespace distill::data
