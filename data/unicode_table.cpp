#include "data/unicode_table.h"

#include <iterator>
#include <map>

namespace distill::data::unicode {
namespace {

constexpr uint32_t kRuns[] = {
#include "data/unicode_runs.inc"
};
constexpr uint32_t kCodePoints = 0x110000;

// By category: Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co.
uint16_t properties(uint32_t run) {
  const uint32_t category = run & kCategoryMask;
  uint16_t result = run & 0xFF;
  if (category >= 1 && category <= 5) result |= kLetter;
  if (category >= 6 && category <= 8) result |= kMark;
  if (category >= 9 && category <= 11) result |= kNumber;
  if (category >= 12 && category <= 18) result |= kPunctuation;
  if (category >= 19 && category <= 22) result |= kSymbol;
  return result;
}

}  // namespace

const Table& Table::instance() {
  static const Table table;
  return table;
}

Table::Table() {
  std::map<Block, uint16_t> known;
  size_t run = 0;
  for (uint32_t first = 0; first < kCodePoints; first += kBlockSize) {
    Block block;
    for (uint32_t i = 0; i < kBlockSize; ++i) {
      if (run + 1 < std::size(kRuns) && kRuns[run + 1] >> 8 == first + i) ++run;
      block[i] = properties(kRuns[run]);
    }
    if (first == 0) {
      block['\r'] |= kNewline;
      block['\n'] |= kNewline;
    }
    const auto [entry, is_new] = known.try_emplace(block, static_cast<uint16_t>(blocks_.size()));
    if (is_new) blocks_.push_back(block);
    block_of_[first >> kBlockBits] = entry->second;
  }
}

}  // namespace distill::data::unicode
