// Looking at the text of a chat template without running it, and what its expressions do to strings.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace distill::data::jinja {

// `jinja` in one spelling, so that templates which print the same compare equal: no comments and no spaces in
// expressions, 'single quotes', x.y for x['y'], 'ab' for 'a' + 'b', no whitespace marks; text between tags becomes
// {{'text'}} where trim_blocks and lstrip_blocks, which transformers sets, leave any of it.
std::string normalised(std::string_view jinja);

// Whether `text` is the `pieces` in this order with anything between them, beginning with the first and ending with the
// last. Gives what lay between: gap i follows piece i. Each piece is taken where it comes first.
std::optional<std::vector<std::string_view>> match(std::string_view text,
                                                   std::initializer_list<std::string_view> pieces);

// The value of a literal without its quotes, as normalised() writes it; nothing if `literal` is more than one literal.
std::optional<std::string> unescape(std::string_view literal);

// Takes `part` off the front of `text` if it is there.
bool take_prefix(std::string_view& text, std::string_view part);

// Python's str.strip() without arguments, which is what the filter `trim` does.
std::string_view strip(std::string_view text);
// str.strip, lstrip and rstrip with one character.
std::string_view strip(std::string_view text, char character);
std::string_view lstrip(std::string_view text, char character);
std::string_view rstrip(std::string_view text, char character);

// text.split(separator)[0] and [-1].
std::string_view before_first(std::string_view text, std::string_view separator);
std::string_view after_last(std::string_view text, std::string_view separator);

}  // namespace distill::data::jinja
