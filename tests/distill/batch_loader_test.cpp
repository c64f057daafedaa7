#include "distill/batch_loader.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "distill/fair_shares.h"
#include "tests/distill/tiny_traces.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

class BatchLoaderTest : public testing::Test {
 protected:
  // 14 positions each.
  std::shared_ptr<const data::TraceReader> traces(int documents) {
    TinyModel teacher(kTinyVocab, 16, 100);
    return make_tiny_traces(folder_.path() / "traces", teacher, "topk:4", documents);
  }
  TemporaryFolder folder_{TemporaryFolder::memory()};
};

TEST_F(BatchLoaderTest, PutsTheSameBatchesIntoAStepWhateverTheNumberOfRanks) {
  const auto data = traces(50);
  const data::BatcherOptions options{.max_tokens = 64};
  for (const int size : {1, 2, 3, 8}) {
    BatchLoader whole(data, options, {}, 300);
    std::vector<std::unique_ptr<BatchLoader>> ranks;
    ranks.reserve(static_cast<size_t>(size));
    for (int rank = 0; rank < size; ++rank) {
      ranks.push_back(std::make_unique<BatchLoader>(data, options, data::BatcherState(), 300, rank, size));
    }
    for (int i = 0; i < 6; ++i) {  // more than an epoch
      const StepBatches expected = whole.next();
      std::map<int64_t, at::Tensor> found;
      for (auto& rank : ranks) {
        const StepBatches step = rank->next();
        EXPECT_EQ(step.tokens, expected.tokens);
        EXPECT_EQ(step.targets, expected.targets);
        EXPECT_EQ(step.after.to_json(), expected.after.to_json());
        for (size_t b = 0; b < step.batches.size(); ++b) found[step.numbers[b]] = step.batches[b].tokens;
      }
      ASSERT_EQ(found.size(), expected.batches.size());
      for (const auto& [number, tokens] : found) {
        EXPECT_TRUE(tokens.equal(expected.batches[static_cast<size_t>(number)].tokens));
      }
    }
  }
}

// An epoch is a full batch of 4 documents and one of a single document.
TEST_F(BatchLoaderTest, GivesASmallBatchToTheRankThatHasLeastToDo) {
  const auto data = traces(5);
  BatchLoader first(data, {.max_tokens = 56}, {}, 112, 0, 2);
  BatchLoader second(data, {.max_tokens = 56}, {}, 112, 1, 2);
  for (int i = 0; i < 8; ++i) {
    int64_t most = 0;
    StepBatches step;
    for (BatchLoader* rank : {&first, &second}) {
      step = rank->next();
      int64_t tokens = 0;
      for (const auto& batch : step.batches) tokens += batch.tokens.numel();
      most = std::max(most, tokens);
    }
    EXPECT_LE(most, std::max<int64_t>(56, (step.tokens + 14) / 2)) << step.tokens << " tokens";
  }
}

TEST(FairShares, GivesTheLargestPiecesToDifferentShares) {
  EXPECT_EQ(fair_shares(std::vector<int64_t>{1, 5, 4, 2}, 2), (std::vector<int>{0, 0, 1, 1}));
  EXPECT_EQ(fair_shares(std::vector<int64_t>{3}, 4), (std::vector<int>{0}));
}

}  // namespace
}  // namespace distill
