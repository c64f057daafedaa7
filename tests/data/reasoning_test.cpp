#include "data/reasoning.h"

#include <gtest/gtest.h>

#include <vector>

namespace distill::data {
namespace {

constexpr ReasoningTokens kMarkers{.open = 1, .close = 2};

size_t length(const std::vector<int32_t>& prompt, const std::vector<int32_t>& completion) {
  return reasoning_length(prompt, completion, kMarkers);
}

TEST(Reasoning, EndsBehindItsMark) {
  EXPECT_EQ(length({9}, {1, 7, 7, 2, 5, 5}), 4u);
  EXPECT_EQ(length({9}, {8, 1, 7, 2}), 4u);
  EXPECT_EQ(length({9}, {1, 7, 2, 5, 1, 7, 2, 6}), 7u);
}

TEST(Reasoning, MayBeOpenedByThePrompt) {
  EXPECT_EQ(length({9, 1, 8}, {7, 2, 5}), 2u);
  EXPECT_EQ(length({9, 1, 8}, {7, 7}), 2u);
  EXPECT_EQ(length({9, 1, 8, 2}, {7, 7}), 0u);
}

TEST(Reasoning, IsEverythingIfItNeverEndsAndNothingIfItNeverBegins) {
  EXPECT_EQ(length({9}, {1, 7, 7}), 3u);
  EXPECT_EQ(length({9}, {1, 7, 2, 5, 1, 7}), 6u);
  EXPECT_EQ(length({9}, {5, 5}), 0u);
  EXPECT_EQ(length({9}, {5, 2, 5}), 0u);
  EXPECT_EQ(length({9}, {}), 0u);
}

}  // namespace
}  // namespace distill::data
