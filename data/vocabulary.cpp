#include "data/vocabulary.h"

#include <utility>

#include "core/error.h"
#include "data/byte_alphabet.h"

namespace distill::data {

void Vocabulary::add(std::string_view text, int64_t id) {
  core::check(id >= 0 && id <= kMaxTokenId, "token '{}' has the id {}; ids go from 0 to {}", text, id, kMaxTokenId);
  const auto [entry, is_new] = ids_.try_emplace(std::string(text), static_cast<int32_t>(id));
  core::check(is_new, "token '{}' has two ids, {} and {}", text, entry->second, id);
  if (id >= size()) tokens_.resize(static_cast<size_t>(id) + 1);
  Token& token = tokens_[id];
  core::check(!token.present, "tokens '{}' and '{}' have the same id {}", token.text, text, id);
  token.text = text;
  token.present = true;
  set_decoded_text(static_cast<int32_t>(id), text);
}

void Vocabulary::set_decoded_text(int32_t id, std::string_view text) {
  tokens_[id].bytes = byte_alphabet::to_bytes(text).value_or(std::string(text));
}

void Vocabulary::check_complete() const {
  for (size_t id = 0; id < tokens_.size(); ++id) {
    core::check(tokens_[id].present, "id {} has no token, but the vocabulary goes up to {}", id, tokens_.size() - 1);
  }
}

std::optional<int32_t> Vocabulary::find(std::string_view text) const {
  const auto it = ids_.find(text);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

}  // namespace distill::data
