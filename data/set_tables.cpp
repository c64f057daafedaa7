#include "data/set_tables.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "data/adaptive_coder.h"
#include "data/little_endian.h"
#include "data/trace_record.h"

namespace distill::data {
namespace {

// Weight of the class that a symbol's count falls into.
uint64_t class_weight(uint8_t value) {
  return value == 0 ? 0 : static_cast<uint64_t>(std::sqrt(static_cast<double>(uint64_t{1} << (value + 3))));
}

RansTable table_of(std::span<const uint8_t> classes) {
  std::vector<uint64_t> weights(classes.size());
  std::ranges::transform(classes, weights.begin(), class_weight);
  // A table that nothing was coded under; a damaged stream may still come here.
  if (std::ranges::all_of(classes, [](uint8_t value) { return value == 0; })) weights[0] = 1;
  return RansTable(normalise_frequencies(weights));
}

}  // namespace

IdOrder::IdOrder(std::span<const uint8_t> classes) : vocabulary_(classes.size()) {
  std::array<size_t, 257> begin{};  // of the class, from the last class down
  for (const uint8_t value : classes) ++begin[255 - value + 1u];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  size_ = begin[255];
  const auto sort = [&](auto& ids) {
    ids.resize(size_ + 1);
    for (size_t id = 0; id < classes.size(); ++id) {
      if (classes[id] > 0) {
        ids[begin[255u - classes[id]]++] = static_cast<std::remove_reference_t<decltype(ids[0])>>(id);
      }
    }
  };
  classes.size() <= size_t{1} << 16 ? sort(narrow_) : sort(wide_);
}

std::vector<uint32_t> IdOrder::ranks() const {
  std::vector<uint32_t> result(vocabulary_, kNone);
  for (size_t rank = 0; rank < size(); ++rank) result[static_cast<size_t>(id(rank))] = static_cast<uint32_t>(rank);
  return result;
}

SetTables::SetTables(std::span<const uint8_t> classes, size_t vocabulary, std::vector<int32_t> opening_tokens)
    : opening(std::move(opening_tokens)), order(classes.first(vocabulary)) {
  for (size_t context = 0; context < symbols.size(); ++context) {
    symbols[context] = table_of(classes.subspan(vocabulary + context * Magnitude::kSymbols, Magnitude::kSymbols));
  }
}

std::shared_ptr<const SetTables> SetTables::decode(std::span<const std::byte> model, size_t vocabulary, bool tokens) {
  return core::with_context("codec tables", [&] {
    std::vector<int32_t> opening;
    if (tokens) {
      core::check(model.size() >= 4, "{} bytes are too few", model.size());
      const size_t width = token_bytes(static_cast<int64_t>(vocabulary)), bytes = width * load<uint32_t>(model.data());
      core::check(bytes <= model.size() - 4, "an opening of {} bytes among {}", bytes, model.size());
      opening = load_tokens(model.subspan(4, bytes), width);
      for (const int32_t id : opening) {
        core::check(id >= 0 && static_cast<size_t>(id) < vocabulary, "id {} is outside the vocabulary of {}", id,
                    vocabulary);
      }
      model = model.subspan(4 + bytes);
    }
    const size_t coded = (tokens ? set_context::kContexts : set_context::kShared) * Magnitude::kSymbols;
    auto classes = decode_adaptively(model, vocabulary + coded);
    classes.resize(vocabulary + set_context::kContexts * Magnitude::kSymbols);
    auto tables = std::make_shared<SetTables>(classes, vocabulary, std::move(opening));
    tables->tokens = tokens;
    return std::shared_ptr<const SetTables>(std::move(tables));
  });
}

std::span<const uint32_t> SetTables::ranks() const {
  std::call_once(ranked_, [this] { ranks_ = order.ranks(); });
  return ranks_;
}

std::vector<uint8_t> symbol_classes(std::span<const uint64_t> counts) {
  const uint64_t total = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  std::vector<uint8_t> classes(counts.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) continue;
    // Relative to 2^15, so that every class is below 32.
    const double scaled = std::max(1.0, static_cast<double>(counts[i]) / static_cast<double>(total) * 32768);
    classes[i] = static_cast<uint8_t>(1 + std::floor(2 * std::log2(scaled)));
  }
  return classes;
}

SetTableCache& SetTableCache::shared() {
  // Of some three thousand shards with a vocabulary of 32,000. Outlives every codec, static ones too.
  static auto& cache = *new SetTableCache(size_t{256} << 20);
  return cache;
}

std::shared_ptr<const SetTables> SetTableCache::get(Key key,
                                                    const std::function<std::shared_ptr<const SetTables>()>& make) {
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = places_.find(key); found != places_.end()) {
      entries_.splice(entries_.begin(), entries_, found->second);
      return found->second->tables;
    }
  }
  auto tables = make();
  const std::lock_guard lock(mutex_);
  if (const auto found = places_.find(key); found != places_.end()) return found->second->tables;  // another thread did
  entries_.push_front({key, tables});
  places_[key] = entries_.begin();
  bytes_ += tables->bytes();
  while (bytes_ > limit_ && entries_.size() > 1) drop(std::prev(entries_.end()));
  return tables;
}

void SetTableCache::forget(Key key) {
  const std::lock_guard lock(mutex_);
  if (const auto found = places_.find(key); found != places_.end()) drop(found->second);
}

size_t SetTableCache::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

void SetTableCache::drop(std::list<Entry>::iterator entry) {
  bytes_ -= entry->tables->bytes();
  places_.erase(entry->key);
  entries_.erase(entry);
}

}  // namespace distill::data
