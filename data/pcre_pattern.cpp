// Regular expressions on PCRE2, made to match as Oniguruma (6.9.9, Unicode 16, Ruby syntax) does.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <map>
#include <utility>

#include "core/error.h"
#include "data/split_pattern.h"
#include "data/unicode_table.h"
#include "data/utf8.h"

namespace distill::data {
namespace {

// Backtracking steps one match may take, as in Oniguruma. Patterns of tokenizers need a few per character.
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr size_t kJitStackBytes = size_t{64} << 20;

std::string pcre_message(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

// Throws on constructs that both engines accept with different meanings.
void check_portable(std::string_view source) {
  const auto refuse = [&](std::string_view what, size_t at) {
    core::fail("regular expression '{}': {} (at byte {}) is not supported", source, what, at);
  };
  bool in_class = false;
  for (size_t i = 0; i < source.size(); ++i) {
    const std::string_view rest = source.substr(i);
    const char next = i + 1 < source.size() ? source[i + 1] : '\0';
    if (rest[0] == '\\') {
      if (std::string_view("wWbBhHKRXGgkyYoON").find(next) != std::string_view::npos && next != '\0') {
        refuse(rest.substr(0, 2), i);
      }
      // Past \p{..} and \x{..}, whose braces are no quantifiers.
      i += i + 2 < source.size() && source[i + 2] == '{' && (next == 'p' || next == 'P' || next == 'x')
               ? std::min(rest.find('}'), rest.size())
               : 1;
    } else if (in_class) {
      if (rest[0] == '[') refuse("a class inside a class", i);
      if (rest.starts_with("&&")) refuse("an intersection of classes", i);
      if (rest[0] == ']') in_class = false;
    } else if (rest[0] == '[') {
      in_class = true;
      if (next == '^') ++i;
      if (i + 1 < source.size() && source[i + 1] == ']') refuse("a class that begins with ']'", i);
    } else if (rest.starts_with("(?")) {
      const size_t flags_end = rest.find_first_of(":)=!<>", 2);
      const std::string_view flags = rest.substr(2, flags_end == std::string_view::npos ? flags_end : flags_end - 2);
      if (flags.find_first_of("msxUJ#P") != std::string_view::npos) refuse(rest.substr(0, 3), i);
    } else if (rest.starts_with("{,") || rest.starts_with("}+")) {
      refuse(rest.substr(0, 2), i);
    } else if (rest[0] == '(' && next == '*') {
      refuse("(*", i);
    }
  }
}

// PCRE2 10.42 knows Unicode 14 and counts U+180E as whitespace. A character that it classes differently from our table
// is replaced before matching by one of the same category and length that it classes rightly.
class StandIns {
 public:
  static const StandIns& instance() {
    static const StandIns stand_ins;
    return stand_ins;
  }

  // Null if `text` has none of those characters.
  const std::string* apply(std::string_view text, std::string& buffer) const {
    buffer.clear();
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
    for (size_t i = 0; i < text.size();) {
      const auto [code_point, length] = utf8::decode(bytes + i);
      const auto stand_in = length > 1 ? stand_in_.find(code_point) : stand_in_.end();
      if (stand_in != stand_in_.end()) {
        if (buffer.empty()) buffer = text;
        std::string replacement;
        utf8::append(replacement, stand_in->second);
        buffer.replace(i, length, replacement);
      }
      i += length;
    }
    return buffer.empty() ? nullptr : &buffer;
  }

 private:
  StandIns();
  std::map<char32_t, char32_t> stand_in_;
};

using Code = std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)>;
using MatchData = std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>;
using MatchContext = std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)>;
using JitStack = std::unique_ptr<pcre2_jit_stack, decltype(&pcre2_jit_stack_free)>;

Code compile(const std::string& source) {
  int error = 0;
  size_t offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(),
                          PCRE2_UTF | PCRE2_NO_UTF_CHECK | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, nullptr),
            &pcre2_code_free);
  core::check(code != nullptr, "regular expression '{}': {} (at byte {})", source, pcre_message(error), offset);
  // Without a JIT for this processor PCRE2 interprets.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

class PcrePattern final : public SplitPattern {
 public:
  explicit PcrePattern(std::string text) : SplitPattern(std::move(text), false), code_(compile(source())) {}

  void find(std::string_view text, std::vector<Segment>& segments) const override {
    std::string buffer;
    if (const std::string* replaced = StandIns::instance().apply(text, buffer)) text = *replaced;

    MatchData match(pcre2_match_data_create_from_pattern(code_.get(), nullptr), &pcre2_match_data_free);
    MatchContext context(pcre2_match_context_create(nullptr), &pcre2_match_context_free);
    pcre2_set_match_limit(context.get(), kMatchLimit);
    JitStack stack(nullptr, &pcre2_jit_stack_free);

    size_t from = 0;     // where the next search begins
    size_t covered = 0;  // what the segments cover
    bool matched_before = false;
    while (from <= text.size()) {
      const int result = search(text, from, *match, *context, stack);
      if (result == PCRE2_ERROR_NOMATCH) break;
      const size_t* bounds = pcre2_get_ovector_pointer(match.get());
      const size_t begin = bounds[0];
      const size_t end = bounds[1];
      if (begin == end && matched_before && end == covered) {
        // An empty match right after the one before does not count.
        if (from == text.size()) break;
        from += utf8::decode(reinterpret_cast<const unsigned char*>(text.data()) + from).length;
        continue;
      }
      if (covered < begin) add(segments, covered, begin, false);
      add(segments, begin, end, true);
      from = covered = end;
      matched_before = true;
    }
    if (covered < text.size()) add(segments, covered, text.size(), false);
  }

 private:
  static void add(std::vector<Segment>& segments, size_t begin, size_t end, bool matched) {
    segments.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end), matched});
  }

  int search(std::string_view text, size_t from, pcre2_match_data& match, pcre2_match_context& context,
             JitStack& stack) const {
    const auto run = [&] {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from, PCRE2_NO_UTF_CHECK,
                         &match, &context);
    };
    int result = run();
    if (result == PCRE2_ERROR_JIT_STACKLIMIT && stack == nullptr) {
      stack.reset(pcre2_jit_stack_create(size_t{1} << 16, kJitStackBytes, nullptr));
      pcre2_jit_stack_assign(&context, nullptr, stack.get());
      result = run();
    }
    core::check(result >= 0 || result == PCRE2_ERROR_NOMATCH,
                "splitting text with the regular expression '{}' failed at byte {} of {}: {}", source(), from,
                text.size(), pcre_message(result));
    return result;
  }

  Code code_;
};

StandIns::StandIns() {
  const unicode::Table& table = unicode::Table::instance();
  // Every character's category as PCRE2 has it: a match of \p{..} for each category over all characters at once.
  static constexpr const char* kCategories[] = {"Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd",
                                                "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm",
                                                "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"};
  std::string all;
  std::vector<char32_t> code_points;
  for (char32_t c = 0x80; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    // Nothing was assigned there since, nor ever will be.
    if ((table[c] & unicode::kCategoryMask) == 0) continue;
    utf8::append(all, c);
    code_points.push_back(c);
  }
  std::vector<char32_t> wrong;
  std::map<std::pair<unsigned, uint32_t>, char32_t> representative;  // by category and length
  std::vector<uint8_t> category_of(all.size(), 0);
  for (unsigned category = 1; category < std::size(kCategories); ++category) {
    const std::string source = std::string("\\p{") + kCategories[category] + "}+";
    const Code code = compile(source);
    MatchData match(pcre2_match_data_create(1, nullptr), &pcre2_match_data_free);
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(all.data());
    size_t from = 0;
    while (pcre2_match(code.get(), subject, all.size(), from, PCRE2_NO_UTF_CHECK, match.get(), nullptr) > 0) {
      const size_t* bounds = pcre2_get_ovector_pointer(match.get());
      for (size_t i = bounds[0]; i < bounds[1]; ++i) category_of[i] = static_cast<uint8_t>(category);
      from = bounds[1];
    }
  }
  size_t offset = 0;
  for (const char32_t c : code_points) {
    const unsigned category = table[c] & unicode::kCategoryMask;
    const uint32_t length = utf8::decode(reinterpret_cast<const unsigned char*>(all.data()) + offset).length;
    if (category_of[offset] != category || c == 0x180E) {
      wrong.push_back(c);
    } else {
      representative.try_emplace({category, length}, c);
    }
    offset += length;
  }
  for (const char32_t c : wrong) {
    const unsigned category = table[c] & unicode::kCategoryMask;
    const uint32_t length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    // Ideographs stay ideographs for \p{Han}.
    const bool ideograph = c >= 0x20000 && c < 0x40000;
    const auto found = representative.find({category, length});
    if (ideograph) {
      stand_in_[c] = 0x20000;
    } else if (found != representative.end()) {
      stand_in_[c] = found->second;
    }
  }
}

}  // namespace

std::shared_ptr<const SplitPattern> make_pcre_pattern(std::string source) {
  check_portable(source);
  return std::make_shared<PcrePattern>(std::move(source));
}

}  // namespace distill::data
