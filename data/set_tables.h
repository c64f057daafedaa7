// What the documents of a shard share when their targets are coded as sets: the order of the ids, and a distribution of
// symbols for each context. Layout in docs/trace-format.md, "sets".
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "data/magnitude.h"
#include "data/rans.h"

namespace distill::data {

namespace set_context {
// What is coded under which table.
enum Context : unsigned {
  kHeadCount,
  kTailCount,
  kMultiplicity,
  kHeadRank,               // 8: number of the head
  kLevel = kHeadRank + 8,  // 4 x 5: number of the head, heads that follow
  kGap = kLevel + 20,      // 8 x 10: tail tokens that remain, rank reached
  kShared = kGap + 80,     // how many tokens a prompt has in common with the opening
  kToken = kShared + 1,    // 17: bit width of the rank of the token before
  kContexts = kToken + 17,
};

inline unsigned head_rank(size_t head) {
  return kHeadRank + static_cast<unsigned>(head < 7 ? head : 7);
}

inline unsigned level(size_t head, size_t heads) {
  return kLevel + static_cast<unsigned>(std::min<size_t>(head, 3) * 5 + std::min<size_t>(heads - head - 1, 4));
}

inline unsigned token(uint32_t rank_before) {
  return kToken + std::min(static_cast<unsigned>(std::bit_width(rank_before)), 16u);
}

inline unsigned gap(size_t remaining, uint32_t reached) {
  // 1, 2, 3, 4, 5-6, 7-10, 11-18, more.
  unsigned left = 7;
  if (remaining <= 4) {
    left = static_cast<unsigned>(remaining) - 1;
  } else if (remaining <= 18) {
    left = static_cast<unsigned>(std::bit_width(remaining - 3)) + 2;
  }
  const unsigned place = reached == 0 ? 0 : 1 + std::min(static_cast<unsigned>(std::bit_width(reached)) / 2, 8u);
  return kGap + left * 10 + place;
}
}  // namespace set_context

// The ids that a shard stores, those it stores most often first: by falling class, which is the bit width of how often,
// the lower id first among equals. Ids of class 0 have no rank.
class IdOrder {
 public:
  explicit IdOrder(std::span<const uint8_t> classes);

  size_t size() const { return size_; }
  int32_t id(size_t rank) const { return narrow_.empty() ? wide_[rank] : narrow_[rank]; }
  // All ids by rank, either as 16-bit or as 32-bit numbers; the other is null. A zero follows the last, so that each
  // can be read as 32 bits.
  const uint16_t* narrow() const { return narrow_.empty() ? nullptr : narrow_.data(); }
  const int32_t* wide() const { return wide_.empty() ? nullptr : wide_.data(); }
  // The rank of each id [vocabulary]; kNone without one.
  static constexpr uint32_t kNone = UINT32_MAX;
  std::vector<uint32_t> ranks() const;
  size_t bytes() const { return size_ * (narrow_.empty() ? sizeof(int32_t) : sizeof(uint16_t)); }

 private:
  size_t vocabulary_;
  size_t size_;
  std::vector<uint16_t> narrow_;  // either this, if it can hold every id,
  std::vector<int32_t> wide_;     // or this; then a zero
};

struct SetTables {
  // `classes`: of the ids [vocabulary], then of the symbols [contexts, Magnitude::kSymbols].
  SetTables(std::span<const uint8_t> classes, size_t vocabulary, std::vector<int32_t> opening = {});
  // From a shard's `model`; `tokens` says whether payloads hold them. Throws Error if it is damaged.
  static std::shared_ptr<const SetTables> decode(std::span<const std::byte> model, size_t vocabulary, bool tokens);

  std::vector<int32_t> opening;  // what prompts begin with, as the same chat template and system prompt make them
  bool tokens = true;            // whether payloads begin with these
  IdOrder order;
  std::array<RansTable, set_context::kContexts> symbols;

  // order.ranks(), for encoding; made when they are asked for first.
  std::span<const uint32_t> ranks() const;
  // Without the ranks, which readers don't need.
  size_t bytes() const { return sizeof(SetTables) + order.bytes() + opening.size() * sizeof(int32_t); }

 private:
  mutable std::once_flag ranked_;
  mutable std::vector<uint32_t> ranks_;
};

// Classes of the symbols of one context: half octaves of how often each occurs among all, below 32.
std::vector<uint8_t> symbol_classes(std::span<const uint64_t> counts);

// The tables used last, of all shards of the process together: a set of any number of shards can be open in a bounded
// amount of memory. Tables that are not there are made again, in about a millisecond.
class SetTableCache {
 public:
  explicit SetTableCache(size_t limit_bytes) : limit_(limit_bytes) {}
  static SetTableCache& shared();

  using Key = const void*;  // whose tables they are
  std::shared_ptr<const SetTables> get(Key key, const std::function<std::shared_ptr<const SetTables>()>& make);
  void forget(Key key);
  size_t bytes() const;

 private:
  struct Entry {
    Key key;
    std::shared_ptr<const SetTables> tables;
  };
  void drop(std::list<Entry>::iterator entry);

  size_t limit_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // used last first
  std::unordered_map<Key, std::list<Entry>::iterator> places_;
  size_t bytes_ = 0;
};

}  // namespace distill::data
