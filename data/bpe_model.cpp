#include "data/bpe_model.h"

#include <algorithm>
#include <queue>

#include "core/error.h"
#include "data/byte_alphabet.h"

namespace distill::data {

BpeModel::BpeModel(const Vocabulary& vocabulary, std::vector<std::pair<int32_t, int32_t>> merges, BpeOptions options)
    : vocabulary_(vocabulary),
      merges_(std::move(merges)),
      options_(std::move(options)),
      vocab_size_(vocabulary.size()),
      table_(merges_.size()) {
  std::string joined;
  for (size_t rank = 0; rank < merges_.size(); ++rank) {
    const auto [left, right] = merges_[rank];
    joined.assign(vocabulary.text(left)).append(vocabulary.text(right));
    const auto token = vocabulary.find(joined);
    core::check(token.has_value(), "merge {} ('{}' and '{}') gives '{}', which is not in the vocabulary", rank,
                vocabulary.text(left), vocabulary.text(right), joined);
    table_.set(left, right, {static_cast<uint32_t>(rank), *token});
  }
  for (unsigned byte = 0; byte < byte_tokens_.size(); ++byte) {
    byte_tokens_[byte] = vocabulary.find(byte_alphabet::from_byte(static_cast<unsigned char>(byte))).value_or(-1);
  }
  if (options_.unknown_token) {
    const auto id = vocabulary.find(*options_.unknown_token);
    core::check(id.has_value(), "the unknown token '{}' is not in the vocabulary", *options_.unknown_token);
    unknown_ = *id;
  }
}

size_t BpeModel::initial_tokens(std::string_view piece, int32_t* tokens) const {
  size_t count = 0;
  bool after_unknown = false;
  for (const char byte : piece) {
    const int32_t token = byte_tokens_[static_cast<unsigned char>(byte)];
    if (token >= 0) {
      tokens[count++] = token;
    } else if (unknown_ >= 0 && !(after_unknown && options_.fuse_unknown)) {
      tokens[count++] = unknown_;
    }
    after_unknown = token < 0;
  }
  return count;
}

void BpeModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (options_.ignore_merges) {
    const auto whole = vocabulary_.find(byte_alphabet::from_bytes(piece));
    if (whole && *whole < vocab_size_) {
      ids.push_back(*whole);
      return;
    }
  }
  if (piece.size() <= kShortPiece) {
    std::array<int32_t, kShortPiece> tokens;
    merge_short({tokens.data(), initial_tokens(piece, tokens.data())}, ids);
  } else {
    std::vector<int32_t> tokens(piece.size());
    tokens.resize(initial_tokens(piece, tokens.data()));
    merge_long(tokens, ids);
  }
}

// Looks at all pairs for the best one and closes the gap: for few tokens faster than any clever structure.
void BpeModel::merge_short(std::span<int32_t> tokens, std::vector<int32_t>& ids) const {
  size_t count = tokens.size();
  std::array<Merge, kShortPiece> merge;  // of token i with token i + 1
  for (size_t i = 0; i + 1 < count; ++i) merge[i] = table_.find(tokens[i], tokens[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (merge[i].rank < merge[best].rank) best = i;
    }
    if (merge[best].rank == kNoMerge) break;
    tokens[best] = merge[best].token;
    --count;
    for (size_t i = best + 1; i < count; ++i) tokens[i] = tokens[i + 1];
    for (size_t i = best + 1; i + 1 < count; ++i) merge[i] = merge[i + 1];
    if (best + 1 < count) merge[best] = table_.find(tokens[best], tokens[best + 1]);
    if (best > 0) merge[best - 1] = table_.find(tokens[best - 1], tokens[best]);
  }
  ids.insert(ids.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count));
}

// A heap of (rank, position) over a linked list of tokens. An entry is stale once its position merges otherwise.
void BpeModel::merge_long(std::span<int32_t> tokens, std::vector<int32_t>& ids) const {
  constexpr uint32_t kNone = UINT32_MAX;
  const auto count = static_cast<uint32_t>(tokens.size());
  struct Link {
    uint32_t previous, next;
    Merge merge;  // with the next one
  };
  std::vector<Link> links(count);
  std::vector<uint64_t> entries;
  for (uint32_t i = 0; i < count; ++i) {
    const bool is_last = i + 1 == count;
    const Merge merge = is_last ? Merge{kNoMerge, -1} : table_.find(tokens[i], tokens[i + 1]);
    links[i] = {i == 0 ? kNone : i - 1, is_last ? kNone : i + 1, merge};
    if (merge.rank != kNoMerge) entries.push_back(static_cast<uint64_t>(merge.rank) << 32 | i);
  }
  std::priority_queue heap(std::greater<>(), std::move(entries));
  const auto update = [&](uint32_t i) {
    const uint32_t next = links[i].next;
    links[i].merge = next == kNone ? Merge{kNoMerge, -1} : table_.find(tokens[i], tokens[next]);
    if (links[i].merge.rank != kNoMerge) heap.push(static_cast<uint64_t>(links[i].merge.rank) << 32 | i);
  };
  while (!heap.empty()) {
    const auto rank = static_cast<uint32_t>(heap.top() >> 32);
    const auto i = static_cast<uint32_t>(heap.top());
    heap.pop();
    if (links[i].merge.rank != rank) continue;
    const uint32_t gone = links[i].next;
    tokens[i] = links[i].merge.token;
    links[i].next = links[gone].next;
    links[gone].merge.rank = kNoMerge;
    if (links[i].next != kNone) links[links[i].next].previous = i;
    update(i);
    if (links[i].previous != kNone) update(links[i].previous);
  }
  for (uint32_t i = count == 0 ? kNone : 0; i != kNone; i = links[i].next) ids.push_back(tokens[i]);
}

}  // namespace distill::data
