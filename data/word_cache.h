// Remembers the ids of short pieces of text met before: one slot of one cache line per hash value, newest wins.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace distill::data {

// Not thread-safe; each thread at work has its own.
class WordCache {
 public:
  static constexpr size_t kMaxBytes = 23;
  static constexpr size_t kMaxIds = 9;

  // A piece of at most kMaxBytes bytes, padded with zeros and its length.
  struct Key {
    std::array<uint64_t, 3> words;
    bool operator==(const Key&) const = default;
  };
  struct alignas(64) Slot {
    Key key{};
    uint32_t count = 0;
    std::array<int32_t, kMaxIds> ids{};
    bool holds(const Key& other) const { return key == other; }
  };

  WordCache() : slots_(kSlots) {}

  static Key key_of(std::string_view piece) {
    std::array<char, sizeof(Key)> bytes{};
    std::memcpy(bytes.data(), piece.data(), piece.size());
    bytes[kMaxBytes] = static_cast<char>(piece.size());
    Key key;
    std::memcpy(&key, bytes.data(), sizeof key);
    return key;
  }

  Slot& slot(const Key& key) {
    // Multiplications mix upwards, so the high bits choose.
    uint64_t hash = key.words[0] * 0x9E3779B97F4A7C15u;
    hash = (hash ^ hash >> 29 ^ key.words[1]) * 0xBF58476D1CE4E5B9u;
    hash = (hash ^ hash >> 32 ^ key.words[2]) * 0x94D049BB133111EBu;
    return slots_[hash >> (64 - kSlotBits)];
  }

  // Keeps `ids` for `key` in its slot if they fit.
  static void store(Slot& slot, const Key& key, std::span<const int32_t> ids) {
    if (ids.size() > kMaxIds) return;
    slot.key = key;
    slot.count = static_cast<uint32_t>(ids.size());
    std::memcpy(slot.ids.data(), ids.data(), ids.size_bytes());
  }

 private:
  static constexpr unsigned kSlotBits = 15;
  static constexpr size_t kSlots = size_t{1} << kSlotBits;
  static_assert(sizeof(Slot) == 64);

  std::vector<Slot> slots_;
};

}  // namespace distill::data
