// Which pairs of tokens merge into which token, and in what order: a flat hash table, made once and only read after.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace distill::data {

struct Merge {
  uint32_t rank;  // lower merges first
  int32_t token;  // what the pair becomes
};

inline constexpr uint32_t kNoMerge = UINT32_MAX;

class MergeTable {
 public:
  explicit MergeTable(size_t expected = 0) {
    size_t capacity = 16;
    while (capacity < 2 * expected) capacity *= 2;
    slots_.resize(capacity);
  }

  // A pair added before takes the new rank and token, as in `tokenizers`. At most `expected` pairs.
  void set(int32_t left, int32_t right, Merge merge) {
    const uint64_t key = key_of(left, right);
    size_t i = home(key);
    while (slots_[i].key != kEmpty && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
    slots_[i] = {key, merge};
  }

  // Rank kNoMerge if the pair does not merge.
  Merge find(int32_t left, int32_t right) const {
    const uint64_t key = key_of(left, right);
    for (size_t i = home(key);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].key == key) return slots_[i].merge;
      if (slots_[i].key == kEmpty) return {kNoMerge, -1};
    }
  }

 private:
  static constexpr uint64_t kEmpty = UINT64_MAX;  // no pair: ids are not negative
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge = {kNoMerge, -1};
  };

  static uint64_t key_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  // Fibonacci hashing; the high bits are the well-mixed ones.
  size_t home(uint64_t key) const { return (key * 0x9E3779B97F4A7C15u >> 32) & (slots_.size() - 1); }

  std::vector<Slot> slots_;
};

}  // namespace distill::data
