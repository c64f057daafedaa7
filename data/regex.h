// Perl-compatible regular expressions on text that may be long, hostile or not quite UTF-8.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace distill::data {

// Immutable; safe to use from several threads at once.
class Regex {
 public:
  // Throws Error with PCRE2's message and the place in the pattern.
  explicit Regex(std::string_view pattern);

  // Group `group` (0 is the whole match) of the first or last match, as a view of `text`; nothing if there is no match,
  // the group took no part in it, or matching exceeds a fixed amount of work.
  std::optional<std::string_view> first(std::string_view text, unsigned group = 0) const;
  std::optional<std::string_view> last(std::string_view text, unsigned group = 0) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace distill::data
