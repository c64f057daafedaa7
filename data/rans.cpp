#include "data/rans.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/error.h"
#include "data/little_endian.h"

namespace distill::data {

constexpr uint32_t kScale = 1u << rans::kScaleBits;

RansTable::RansTable(std::span<const uint16_t> frequencies) {
  core::check(frequencies.size() <= kMaxSymbols, "{} symbols in a table", frequencies.size());
  uint32_t start = 0;
  for (size_t symbol = 0; symbol < frequencies.size(); ++symbol) {
    core::check(frequencies[symbol] <= kScale - start, "the frequencies of a table exceed {}", kScale);
    starts_[symbol] = static_cast<uint16_t>(start);
    start += frequencies[symbol];
  }
  core::check(start == kScale, "the frequencies of a table sum to {} instead of {}", start, kScale);
  std::fill(starts_.begin() + static_cast<ptrdiff_t>(frequencies.size()), starts_.end(), static_cast<uint16_t>(kScale));
  uint8_t symbol = 0;
  for (size_t bucket = 0; bucket < first_.size(); ++bucket) {
    while (starts_[symbol + 1u] <= bucket << kBucketBits) ++symbol;
    first_[bucket] = symbol;
  }
}

void RansEncoder::put_bit(unsigned lane, uint16_t zero, bool bit) {
  operations_.push_back(
      {bit ? zero : uint16_t{0}, static_cast<uint16_t>(bit ? kScale - zero : zero), static_cast<uint8_t>(lane), 0});
}

void RansEncoder::finish(unsigned lanes, std::vector<std::byte>& out) {
  std::array<uint32_t, rans::kLanes> states;
  states.fill(rans::kLowest);
  std::vector<uint16_t> words;
  words.reserve(operations_.size());
  for (size_t i = operations_.size(); i-- > 0;) {
    const Operation& operation = operations_[i];
    uint32_t& state = states[operation.lane];
    if (operation.frequency == 0) {
      if (operation.bits > 0 && state >> (32 - operation.bits) != 0) {
        words.push_back(static_cast<uint16_t>(state));
        state >>= 16;
      }
      state = state << operation.bits | operation.start;
      continue;
    }
    // The new state must stay below 2^32.
    if (state >= static_cast<uint64_t>(operation.frequency) << (32 - rans::kScaleBits)) {
      words.push_back(static_cast<uint16_t>(state));
      state >>= 16;
    }
    state = ((state / operation.frequency) << rans::kScaleBits) + state % operation.frequency + operation.start;
  }
  operations_.clear();
  append(out, std::span<const uint32_t>(states).first(lanes));
  std::ranges::reverse(words);
  append(out, std::span<const uint16_t>(words));
}

RansDecoder::RansDecoder(std::span<const std::byte> bytes, unsigned lanes) : lanes_(lanes) {
  core::check(bytes.size() >= 4 * lanes && bytes.size() % 2 == 0, "{} bytes cannot hold {} coder states and words",
              bytes.size(), lanes);
  states_.fill(rans::kLowest);
  for (unsigned lane = 0; lane < lanes; ++lane) {
    states_[lane] = load<uint32_t>(bytes.data(), lane);
    core::check(states_[lane] >= rans::kLowest, "a coder state is out of range");
  }
  const size_t size = bytes.size() / 2 - 2 * lanes;
  words_.resize(size + kZeros);
  std::memcpy(words_.data(), bytes.data() + 4 * lanes, 2 * size);
  next_ = words_.data();
  last_ = next_ + size + 1;
}

void RansDecoder::finish() const {
  core::check(next_ + 1 == last_, "the coded stream is {} than its contents", overrun() ? "shorter" : "longer");
  for (unsigned lane = 0; lane < lanes_; ++lane) {
    core::check(states_[lane] == rans::kLowest, "the coded stream does not end as it must");
  }
}

std::vector<uint16_t> normalise_frequencies(std::span<const uint64_t> counts) {
  const uint64_t total = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  core::check(total > 0, "a frequency table needs at least one symbol");
  std::vector<uint16_t> frequencies(counts.size());
  int64_t left = kScale;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) continue;
    frequencies[i] = static_cast<uint16_t>(std::max<uint64_t>(1, counts[i] * kScale / total));
    left -= frequencies[i];
  }
  // What rounding left over goes to the most frequent symbol, the first of them; what it took too much comes from them,
  // at most an eighth of a frequency at a time.
  while (left != 0) {
    uint16_t& most = *std::ranges::max_element(frequencies);
    core::check(left > 0 || most > 1, "{} symbols don't fit into a frequency table", counts.size());
    const int64_t step = left > 0 ? left : -std::min<int64_t>(-left, std::max(1, most / 8));
    most = static_cast<uint16_t>(most + step);
    left -= step;
  }
  return frequencies;
}

}  // namespace distill::data
