// Which tokens are kept where, decided for many positions together.
#pragma once

#include <cstdint>
#include <span>

#include "core/philox.h"

namespace distill::data {

// Of how many equal shares a token that is kept consists.
inline constexpr uint8_t kSharesPerToken = 8;

// One token at one position with what it has of being kept there: `shares` of kSharesPerToken.
struct SharedToken {
  uint32_t position = 0;
  int32_t id = 0;
  uint8_t shares = 0;
};

// Rounds every token's shares to none or to all, so that it is kept with the probability shares / kSharesPerToken;
// each position keeps exactly as many tokens as its shares make up (their sum has to be a multiple of
// kSharesPerToken), and each id, over all positions, fewer than one more or less than its shares make up. `tokens` are
// sorted by position, ids at a position distinct. Takes time linear in their number, but for one sort.
//
// This is dependent rounding by splitting (Doerr, "Generating randomized roundings with cardinality constraints and
// derandomizations", STACS 2006): the tokens are edges between positions and ids. From the lowest bit to the highest,
// edges whose shares have that bit are paired at their positions and at their ids; the pairs make paths and cycles,
// along which shares are given and taken alternately, by a fair coin for each.
void round_balanced(std::span<SharedToken> tokens, core::Philox& coins);

}  // namespace distill::data
