// Tokens that are found in the text itself before it is cut into pieces: special tokens such as <|im_end|>, and others
// that were added to a vocabulary after training.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace distill::data {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the whitespace before it along
  bool rstrip = false;       // and after it
  bool normalized = false;   // is looked for in normalised text, in its normalised form
  bool special = false;      // may be left out when decoding
};

// A part of a text: an added token, or text between them (`token` null).
struct TextPart {
  std::string_view text;
  const AddedToken* token;
};

// Finds which of a set of tokens comes first in a text, the longest where several do. Immutable and safe to use from
// several threads at once.
class AddedTokenFinder {
 public:
  // Looks for `contents[i]` to find `*tokens[i]`, which must outlive this. Throws Error naming two that look alike.
  AddedTokenFinder(std::span<const AddedToken* const> tokens, std::span<const std::string> contents);

  // Appends the parts of `text`, none of them empty unless it is a token.
  void split(std::string_view text, std::vector<TextPart>& parts) const;

  bool empty() const { return ends_here_.size() == 1; }

 private:
  struct Found {
    size_t begin, end;
    const AddedToken* token;
  };

  size_t child(size_t node, unsigned char byte) const;
  // The first match at or after `from`; a null token if there is none.
  Found find(std::string_view text, size_t from) const;

  // A trie; node 0 is its root.
  std::vector<const AddedToken*> ends_here_;  // by node: the token whose text ends there, or null
  std::map<std::pair<size_t, unsigned char>, size_t> children_;
  std::array<size_t, 256> first_{};  // the root's children; 0: none
  bool only_one_first_byte_ = false;
  char first_byte_ = 0;
};

}  // namespace distill::data
