#include "data/added_tokens.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "data/unicode_table.h"
#include "data/utf8.h"

namespace distill::data {
namespace {

const unsigned char* at(std::string_view text, size_t i) {
  return reinterpret_cast<const unsigned char*>(text.data()) + i;
}

// Begin of the character that ends at `end`.
size_t character_before(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while ((*at(text, begin) & 0xC0u) == 0x80u) --begin;
  return begin;
}

uint16_t properties(std::string_view text, size_t begin) {
  return unicode::Table::instance()[utf8::decode(at(text, begin)).code_point];
}

bool touches_word(std::string_view text, size_t begin, size_t end) {
  return (begin > 0 && (properties(text, character_before(text, begin)) & unicode::kWord) != 0) ||
         (end < text.size() && (properties(text, end) & unicode::kWord) != 0);
}

size_t skip_spaces_back(std::string_view text, size_t end, size_t limit) {
  while (end > limit) {
    const size_t begin = character_before(text, end);
    if ((properties(text, begin) & unicode::kSpace) == 0) break;
    end = begin;
  }
  return std::max(end, limit);
}

size_t skip_spaces(std::string_view text, size_t begin) {
  while (begin < text.size() && (properties(text, begin) & unicode::kSpace) != 0) {
    begin += utf8::decode(at(text, begin)).length;
  }
  return begin;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::span<const AddedToken* const> tokens, std::span<const std::string> contents)
    : ends_here_(1, nullptr) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    size_t node = 0;
    for (const char byte : contents[i]) {
      const auto key = std::pair(node, static_cast<unsigned char>(byte));
      const auto [entry, is_new] = children_.try_emplace(key, ends_here_.size());
      if (is_new) ends_here_.push_back(nullptr);
      node = entry->second;
    }
    const AddedToken* other = ends_here_[node];
    core::check(other == nullptr, "the added tokens {} and {} are both '{}' in text", other == nullptr ? 0 : other->id,
                tokens[i]->id, contents[i]);
    ends_here_[node] = tokens[i];
  }
  for (unsigned byte = 0; byte < first_.size(); ++byte) {
    const auto it = children_.find({0, static_cast<unsigned char>(byte)});
    if (it != children_.end()) first_[byte] = it->second;
  }
  only_one_first_byte_ = std::ranges::count_if(first_, [](size_t node) { return node != 0; }) == 1;
  if (only_one_first_byte_) first_byte_ = contents.front().front();
}

size_t AddedTokenFinder::child(size_t node, unsigned char byte) const {
  if (node == 0) return first_[byte];
  const auto it = children_.find({node, byte});
  return it == children_.end() ? 0 : it->second;
}

AddedTokenFinder::Found AddedTokenFinder::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (only_one_first_byte_) {
      begin = text.find(first_byte_, begin);
      if (begin == std::string_view::npos) break;
    } else if (first_[*at(text, begin)] == 0) {
      continue;
    }
    Found found{begin, begin, nullptr};
    size_t node = 0;
    for (size_t i = begin; i < text.size(); ++i) {
      node = child(node, *at(text, i));
      if (node == 0) break;
      if (ends_here_[node] != nullptr) found = {begin, i + 1, ends_here_[node]};
    }
    if (found.token != nullptr) return found;
  }
  return {text.size(), text.size(), nullptr};
}

void AddedTokenFinder::split(std::string_view text, std::vector<TextPart>& parts) const {
  size_t covered = 0;
  size_t from = 0;
  while (!empty()) {
    auto [begin, end, token] = find(text, from);
    if (token == nullptr) break;
    // Where the search goes on, whatever becomes of this match.
    from = end;
    if (token->single_word && touches_word(text, begin, end)) continue;
    if (token->lstrip) begin = skip_spaces_back(text, begin, covered);
    if (token->rstrip) end = skip_spaces(text, end);
    if (covered < begin) parts.push_back({text.substr(covered, begin - covered), nullptr});
    parts.push_back({text.substr(begin, end - begin), token});
    covered = end;
  }
  if (covered < text.size()) parts.push_back({text.substr(covered), nullptr});
}

}  // namespace distill::data
