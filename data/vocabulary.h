// The tokens of a byte-level BPE tokenizer: their text as vocabulary files write it, and the bytes they stand for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace distill::data {

// Ids past this are refused as damage: no published vocabulary comes near.
inline constexpr int64_t kMaxTokenId = (1 << 24) - 1;

// Filled once, then immutable and safe to use from several threads at once.
class Vocabulary {
 public:
  // Throws Error naming both tokens if `id` is taken, or if `text` has an id already, or if `id` is out of bounds.
  void add(std::string_view text, int64_t id);
  // Throws Error naming the first id below size() that has no token.
  void check_complete() const;

  // One more than the largest id.
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  std::optional<int32_t> find(std::string_view text) const;
  std::string_view text(int32_t id) const { return tokens_[id].text; }
  // What decoding gives: the text in the byte alphabet read as bytes, or the text itself if it is not all in it.
  std::string_view bytes(int32_t id) const { return tokens_[id].bytes; }
  bool contains(int64_t id) const { return id >= 0 && id < size(); }

  // From now on bytes(id) is what `text` stands for.
  void set_decoded_text(int32_t id, std::string_view text);

 private:
  struct Token {
    std::string text;
    std::string bytes;
    bool present = false;
  };
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::vector<Token> tokens_;
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
};

}  // namespace distill::data
