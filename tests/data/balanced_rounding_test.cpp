#include "data/balanced_rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <vector>

namespace distill::data {
namespace {

// Tokens at random places; the last of each position fills its shares up to whole tokens, if it can.
std::vector<SharedToken> random_tokens(uint32_t positions, int32_t ids, uint32_t seed) {
  core::Philox random(seed, 0, 0);
  std::vector<SharedToken> tokens;
  for (uint32_t position = 0; position < positions; ++position) {
    uint32_t sum = 0;
    for (int32_t id = 0; id < ids; ++id) {
      if (id + 1 < ids && random.next_below(3) == 0) continue;
      const uint32_t missing = (kSharesPerToken - sum % kSharesPerToken) % kSharesPerToken;
      const uint32_t shares = id + 1 == ids ? missing : 1 + random.next_below(kSharesPerToken);
      tokens.push_back({.position = position, .id = id, .shares = static_cast<uint8_t>(shares)});
      sum += shares;
    }
  }
  return tokens;
}

TEST(RoundBalanced, KeepsEachTokenAsOftenAsItsSharesSay) {
  constexpr int kRepeats = 20000;
  const auto tokens = random_tokens(6, 7, 1);
  std::vector<int> kept(tokens.size());
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    auto rounded = tokens;
    core::Philox coins(2, 0, static_cast<uint64_t>(repeat));
    round_balanced(rounded, coins);
    for (size_t i = 0; i < tokens.size(); ++i) kept[i] += rounded[i].shares == kSharesPerToken;
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    const double p = static_cast<double>(tokens[i].shares) / kSharesPerToken;
    EXPECT_NEAR(kept[i] / double{kRepeats}, p, 5 * std::sqrt(p * (1 - p) / kRepeats) + 1e-9) << i;
  }
}

TEST(RoundBalanced, KeepsWhatPositionsAndIdsMakeUp) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    auto tokens = random_tokens(1 + seed % 40, 2 + static_cast<int32_t>(seed % 60), seed);
    std::map<uint32_t, int> of_position;
    std::map<int32_t, int> of_id;
    for (const auto& token : tokens) of_position[token.position] += token.shares, of_id[token.id] += token.shares;
    core::Philox coins(3, seed, 0);
    round_balanced(tokens, coins);
    for (const auto& token : tokens) {
      EXPECT_TRUE(token.shares == 0 || token.shares == kSharesPerToken);
      of_position[token.position] -= token.shares;
      of_id[token.id] -= token.shares;
    }
    for (const auto& [position, difference] : of_position) EXPECT_EQ(difference, 0) << position;
    for (const auto& [id, difference] : of_id) EXPECT_LT(std::abs(difference), kSharesPerToken) << id;
  }
}

TEST(RoundBalanced, LeavesNothingAsItIs) {
  std::vector<SharedToken> none;
  core::Philox coins(1, 0, 0);
  round_balanced(none, coins);
  EXPECT_TRUE(none.empty());
}

}  // namespace
}  // namespace distill::data
