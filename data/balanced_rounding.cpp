#include "data/balanced_rounding.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

namespace distill::data {
namespace {

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

// Partners of edges at one of their ends.
using Partners = std::vector<uint32_t>;

// Pairs those of `order` that have the bit with the next one of the same end that has it.
template <typename End>
void pair(std::span<const SharedToken> tokens, std::span<const uint32_t> order, uint8_t bit, End SharedToken::*end,
          Partners& partners) {
  uint32_t open = kNone;
  for (const uint32_t edge : order) {
    if ((tokens[edge].shares & bit) == 0) continue;
    partners[edge] = kNone;
    if (open != kNone && tokens[open].*end == tokens[edge].*end) {
      partners[open] = edge;
      partners[edge] = open;
      open = kNone;
    } else {
      open = edge;
    }
  }
}

}  // namespace

void round_balanced(std::span<SharedToken> tokens, core::Philox& coins) {
  std::vector<uint32_t> by_position(tokens.size());
  std::iota(by_position.begin(), by_position.end(), 0u);
  std::vector<uint32_t> by_id = by_position;
  std::ranges::sort(by_id, [&](uint32_t a, uint32_t b) {
    return tokens[a].id != tokens[b].id ? tokens[a].id < tokens[b].id : a < b;
  });
  Partners at_position(tokens.size()), at_id(tokens.size());
  for (uint8_t bit = 1; bit < kSharesPerToken; bit = static_cast<uint8_t>(bit << 1)) {
    pair(tokens, by_position, bit, &SharedToken::position, at_position);
    pair(tokens, by_id, bit, &SharedToken::id, at_id);
    const auto round = [&](uint32_t edge, bool give) {
      tokens[edge].shares = static_cast<uint8_t>(tokens[edge].shares + (give ? bit : -bit));
    };
    // Follows a path from `edge`, which is already rounded, giving and taking in turn. Edges lose their bit, so a cycle
    // ends where it began.
    const auto follow = [&](uint32_t edge, bool give, const Partners* partners) {
      while (true) {
        edge = (*partners)[edge];
        if (edge == kNone || (tokens[edge].shares & bit) == 0) return;
        give = !give;
        round(edge, give);
        partners = partners == &at_id ? &at_position : &at_id;
      }
    };
    for (uint32_t edge = 0; edge < tokens.size(); ++edge) {
      if ((tokens[edge].shares & bit) == 0) continue;
      const bool give = coins.next_uint32() % 2 == 0;
      round(edge, give);
      follow(edge, give, &at_id);
      follow(edge, give, &at_position);
    }
  }
}

}  // namespace distill::data
