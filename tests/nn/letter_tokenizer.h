// A tokenizer of single letters: ids 1 to 26 are "a" to "z", the others "_"; id 0 is the special token "<end>".
#pragma once

#include "core/error.h"
#include "data/tokenizer.h"

namespace distill::nn {

class LetterTokenizer final : public data::Tokenizer {
 public:
  explicit LetterTokenizer(int32_t vocab_size = 50) : vocab_size_(vocab_size) {}

  std::vector<int32_t> encode(std::string_view text, bool) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(c >= 'a' && c <= 'z' ? c - 'a' + 1 : 27);
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (!skip_special_tokens || !is_special(id)) text += token_bytes(id);
    }
    return text;
  }
  std::string_view token_bytes(int32_t id) const override {
    static constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz";
    core::check(id >= 0 && id < vocab_size_, "token id {} is outside the vocabulary", id);
    if (id == 0) return "<end>";
    return id <= 26 ? kLetters.substr(static_cast<size_t>(id) - 1, 1) : "_";
  }
  int32_t vocab_size() const override { return vocab_size_; }
  std::optional<int32_t> token_to_id(std::string_view token) const override {
    if (token == "<end>") return 0;
    return token.size() == 1 ? std::optional(encode(token, false)[0]) : std::nullopt;
  }
  bool is_special(int32_t id) const override { return id == 0; }
  std::string to_json() const override { return "{}"; }
  std::string fingerprint() const override { return "letters"; }

 private:
  int32_t vocab_size_;
};

}  // namespace distill::nn
