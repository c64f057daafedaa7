// Range asymmetric numeral systems (Duda, arXiv 1311.2540), several states interleaved on one stream of 16-bit words.
// Layout in docs/trace-format.md, "Entropy coding".
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/error.h"

namespace distill::data {

namespace rans {
inline constexpr unsigned kLanes = 8;
inline constexpr unsigned kScaleBits = 12;              // frequencies of a table sum to 4096
inline constexpr uint32_t kLowest = uint32_t{1} << 16;  // states lie in [2^16, 2^32)
inline constexpr unsigned kMaxRawBits = 16;
}  // namespace rans

// A static distribution over at most 64 symbols, in less than 400 bytes: the tables in use stay in the fastest cache.
class RansTable {
 public:
  static constexpr size_t kMaxSymbols = 64;

  RansTable() = default;
  // Frequencies sum to 4096; a symbol of frequency 0 cannot be coded. Throws Error if they don't, or are too many.
  explicit RansTable(std::span<const uint16_t> frequencies);

  struct Interval {
    uint16_t start = 0;
    uint16_t frequency = 0;
  };
  Interval interval(uint32_t symbol) const {
    return {starts_[symbol], static_cast<uint16_t>(starts_[symbol + 1] - starts_[symbol])};
  }
  // Whose interval holds the slot, below 4096.
  uint32_t symbol_at(uint32_t slot) const {
    uint32_t symbol = first_[slot >> kBucketBits];
    symbol += begins_by(symbol + 1, slot);  // settles nearly all, and without a branch
    while (begins_by(symbol + 1, slot) != 0) ++symbol;
    return symbol;
  }

 private:
  friend class WideRansDecoder;               // reads several tables at once, by the bytes of their members
  static constexpr unsigned kBucketBits = 4;  // slots in a bucket
  static constexpr size_t kBuckets = size_t{1} << (rans::kScaleBits - kBucketBits);

  // 1 if the symbol's interval begins at the slot or before it, else 0.
  uint32_t begins_by(uint32_t symbol, uint32_t slot) const { return (starts_[symbol] - slot - 1) >> 31; }

  std::array<uint8_t, kBuckets> first_{};           // symbol at the first slot of each bucket
  std::array<uint16_t, kMaxSymbols + 2> starts_{};  // and 4096 from the last symbol's end on
};

// Collects what is to be coded in the order in which it will be decoded, then writes it from the back.
class RansEncoder {
 public:
  // `lane` is below the number of lanes given to finish(). Throws Error if the table gives the symbol no frequency.
  void put(unsigned lane, const RansTable& table, uint32_t symbol) {
    const RansTable::Interval interval = table.interval(symbol);
    core::check(interval.frequency > 0, "symbol {} has no frequency", symbol);
    operations_.push_back({interval.start, interval.frequency, static_cast<uint8_t>(lane), 0});
  }
  // A bit that is 0 with probability `zero` / 4096, 0 < zero < 4096.
  void put_bit(unsigned lane, uint16_t zero, bool bit);
  // The lowest `bits` (at most 16) of `value`, uncompressed.
  void put_raw(unsigned lane, uint32_t value, unsigned bits) {
    operations_.push_back(
        {static_cast<uint16_t>(value & ((1u << bits) - 1)), 0, static_cast<uint8_t>(lane), static_cast<uint8_t>(bits)});
  }
  // Appends the states of `lanes` lanes (u32 each) and the words, and starts afresh.
  void finish(unsigned lanes, std::vector<std::byte>& out);

 private:
  struct Operation {
    uint16_t start;      // of the symbol's interval, or the raw value
    uint16_t frequency;  // 0 for raw bits
    uint8_t lane;
    uint8_t bits;
  };
  std::vector<Operation> operations_;
};

// The stream is untrusted: reading past its end gives zeros and is noticed by finish(). Fastest as a local variable
// (move it there): the compiler then knows that nothing else changes it.
class RansDecoder {
 public:
  // Throws Error if the bytes cannot hold `lanes` states and whole words.
  RansDecoder(std::span<const std::byte> bytes, unsigned lanes);

  uint32_t get(unsigned lane, const RansTable& table) {
    uint32_t& state = states_[lane];
    const uint32_t slot = state & ((1u << rans::kScaleBits) - 1), symbol = table.symbol_at(slot);
    const auto [start, frequency] = table.interval(symbol);
    state = frequency * (state >> rans::kScaleBits) + slot - start;
    refill(state);
    return symbol;
  }
  bool get_bit(unsigned lane, uint32_t zero) {
    uint32_t& state = states_[lane];
    const uint32_t slot = state & ((1u << rans::kScaleBits) - 1), high = state >> rans::kScaleBits;
    const bool bit = slot >= zero;
    state = bit ? ((1u << rans::kScaleBits) - zero) * high + slot - zero : zero * high + slot;
    refill(state);
    return bit;
  }
  uint32_t get_raw(unsigned lane, unsigned bits) {
    uint32_t& state = states_[lane];
    const uint32_t value = state & ((1u << bits) - 1);
    state >>= bits;
    refill(state);
    return value;
  }
  // Throws Error unless exactly the whole stream was read and every state is the one that encoding began with.
  void finish() const;
  // Whether more was read than there is.
  bool overrun() const { return next_ == last_; }

 private:
  friend class WideRansDecoder;
  static constexpr size_t kZeros = 18;  // behind the words: as many as a step of all lanes may look at, and two
  // Without branches: whether a word is due is as good as random.
  void refill(uint32_t& state) {
    const bool due = state < rans::kLowest;
    const uint32_t refilled = state << 16 | *next_;
    state = due ? refilled : state;
    next_ = std::min(next_ + due, last_);
  }

  std::array<uint32_t, rans::kLanes> states_{};
  unsigned lanes_;
  std::vector<uint16_t> words_;  // and kZeros zeros
  const uint16_t* next_;
  const uint16_t* last_;  // the second zero, where `next_` is once more was read than there is
};

// Frequencies proportional to `counts` (below 2^50), summing to 4096, at least 1 where the count is not 0. Throws Error
// if all counts are 0 or more than 4096 are not.
std::vector<uint16_t> normalise_frequencies(std::span<const uint64_t> counts);

}  // namespace distill::data
