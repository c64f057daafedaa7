// Byte-pair encoding of one piece of text: every byte becomes its token, then the pair that merges first is merged,
// again and again, the leftmost of equals first.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/merge_table.h"
#include "data/vocabulary.h"

namespace distill::data {

struct BpeOptions {
  // A piece that is a token as it stands is taken whole, whatever its merges say (Llama-3).
  bool ignore_merges = false;
  // Stands for bytes without a token; without it they are dropped, as in `tokenizers`.
  std::optional<std::string> unknown_token;
  // Neighbouring unknown bytes give one unknown token.
  bool fuse_unknown = false;
};

// Immutable and safe to use from several threads at once.
class BpeModel {
 public:
  // `merges` are pairs of token ids in order of rank. Throws Error naming the merge whose result is not a token.
  BpeModel(const Vocabulary& vocabulary, std::vector<std::pair<int32_t, int32_t>> merges, BpeOptions options);

  // Appends the ids of `piece`. Takes O(n log n) steps at most.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

  const std::vector<std::pair<int32_t, int32_t>>& merges() const { return merges_; }
  const BpeOptions& options() const { return options_; }
  // Ids below this are the model's own; added tokens may follow.
  int32_t vocab_size() const { return vocab_size_; }

 private:
  static constexpr size_t kShortPiece = 48;

  size_t initial_tokens(std::string_view piece, int32_t* tokens) const;
  void merge_short(std::span<int32_t> tokens, std::vector<int32_t>& ids) const;
  void merge_long(std::span<int32_t> tokens, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary_;
  std::vector<std::pair<int32_t, int32_t>> merges_;
  BpeOptions options_;
  int32_t vocab_size_;
  MergeTable table_;
  std::array<int32_t, 256> byte_tokens_{};  // -1: no token
  int32_t unknown_ = -1;
};

}  // namespace distill::data
