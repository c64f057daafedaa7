// Hand-written matchers for the regular expressions of well-known tokenizers. Each match(p, end) returns where the
// leftmost alternative that matches at `p` ends, as a backtracking engine would, or `p` if none does.
#include <utility>

#include "data/split_pattern.h"
#include "data/unicode_table.h"
#include "data/utf8.h"

namespace distill::data {

const std::string_view kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kDeepSeekNumberPattern = R"(\p{N}{1,3})";
const std::string_view kDeepSeekCjkPattern = "[一-龥぀-ゟ゠-ヿ]+";
const std::string_view kDeepSeekWordPattern =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

using unicode::kLetter;
using unicode::kMark;
using unicode::kNewline;
using unicode::kNumber;
using unicode::kPunctuation;
using unicode::kSpace;
using unicode::kSymbol;

using Bytes = const unsigned char*;

struct Character {
  uint16_t properties;
  uint32_t length;
};

inline Character character_at(const unicode::Table& table, Bytes p) {
  if (*p < 0x80) return {table.ascii(*p), 1};
  const auto [code_point, length] = utf8::decode(p);
  return {table[code_point], length};
}

// Past the characters from `p` on that have one of the properties in `mask`.
template <uint16_t mask>
inline Bytes skip(const unicode::Table& table, Bytes p, Bytes end) {
  while (p < end) {
    const auto [properties, length] = character_at(table, p);
    if ((properties & mask) == 0) break;
    p += length;
  }
  return p;
}

// Past the characters that have none of them.
template <uint16_t mask>
inline Bytes skip_without(const unicode::Table& table, Bytes p, Bytes end) {
  while (p < end) {
    const auto [properties, length] = character_at(table, p);
    if ((properties & mask) != 0) break;
    p += length;
  }
  return p;
}

// \s+(?!\S)|\s+ where whitespace stands at `p`: leaves the last of several to the word that follows.
inline Bytes match_spaces(const unicode::Table& table, Bytes p, Bytes end) {
  Bytes last = p;
  Bytes q = p;
  while (q < end) {
    const auto [properties, length] = character_at(table, q);
    if ((properties & kSpace) == 0) break;
    last = q;
    q += length;
  }
  return q == end || last == p ? q : last;
}

// \s*[\r\n]+|\s+(?!\S)|\s+ where whitespace stands at `p`: up to the last line break, if there is one.
inline Bytes match_lines_or_spaces(const unicode::Table& table, Bytes p, Bytes end) {
  Bytes last = p;
  Bytes after_newline = nullptr;
  Bytes q = p;
  while (q < end) {
    const auto [properties, length] = character_at(table, q);
    if ((properties & kSpace) == 0) break;
    last = q;
    q += length;
    if ((properties & kNewline) != 0) after_newline = q;
  }
  if (after_newline != nullptr) return after_newline;
  return q == end || last == p ? q : last;
}

// 's|'t|'re|'ve|'m|'ll|'d after the apostrophe at `p`; returns `p` if there is none of them.
template <bool ignore_case>
inline Bytes match_contraction(Bytes p, Bytes end) {
  const auto letter = [&](size_t i) -> unsigned char {
    if (p + i >= end) return 0;
    return ignore_case && p[i] >= 'A' && p[i] <= 'Z' ? p[i] | 0x20u : p[i];
  };
  const auto is = [&](char first, char second) { return letter(1) == first && letter(2) == second; };
  switch (letter(1)) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return p + 2;
    case 0xC5:  // U+017F folds to s
      return ignore_case && letter(2) == 0xBF ? p + 3 : p;
    default:
      return is('r', 'e') || is('v', 'e') || is('l', 'l') ? p + 3 : p;
  }
}

struct Gpt2 {
  const unicode::Table& table = unicode::Table::instance();

  Bytes match(Bytes p, Bytes end) const {
    if (*p == '\'') {
      if (const Bytes q = match_contraction<false>(p, end); q != p) return q;
    }
    const Bytes first = *p == ' ' && p + 1 < end ? p + 1 : p;
    const auto [properties, length] = character_at(table, first);
    if ((properties & kLetter) != 0) return skip<kLetter>(table, first + length, end);
    if ((properties & kNumber) != 0) return skip<kNumber>(table, first + length, end);
    if ((properties & kSpace) == 0) return skip_without<kSpace | kLetter | kNumber>(table, first + length, end);
    return match_spaces(table, p, end);
  }
};

// Llama-3 and Qwen2, which differ in how many digits make a piece.
template <int max_digits>
struct Llama3 {
  const unicode::Table& table = unicode::Table::instance();

  Bytes match(Bytes p, Bytes end) const {
    if (*p == '\'') {
      if (const Bytes q = match_contraction<true>(p, end); q != p) return q;
    }
    const auto [properties, length] = character_at(table, p);
    if ((properties & kLetter) != 0) return skip<kLetter>(table, p + length, end);
    if ((properties & kNumber) != 0) return digits(p + length, end);
    const Bytes next = p + length;
    const Character following = next < end ? character_at(table, next) : Character{kSpace, 0};
    if ((properties & kNewline) == 0 && (following.properties & kLetter) != 0) {
      return skip<kLetter>(table, next + following.length, end);
    }
    if ((properties & kSpace) == 0) return others(next, end);
    if (*p == ' ' && (following.properties & (kSpace | kNumber)) == 0) return others(next + following.length, end);
    return match_lines_or_spaces(table, p, end);
  }

 private:
  Bytes digits(Bytes p, Bytes end) const {
    for (int count = 1; count < max_digits && p < end; ++count) {
      const auto [properties, length] = character_at(table, p);
      if ((properties & kNumber) == 0) break;
      p += length;
    }
    return p;
  }
  Bytes others(Bytes p, Bytes end) const {
    return skip<kNewline>(table, skip_without<kSpace | kLetter | kNumber>(table, p, end), end);
  }
};

struct DeepSeekNumbers {
  const unicode::Table& table = unicode::Table::instance();

  Bytes match(Bytes p, Bytes end) const {
    for (int count = 0; count < 3 && p < end; ++count) {
      const auto [properties, length] = character_at(table, p);
      if ((properties & kNumber) == 0) break;
      p += length;
    }
    return p;
  }
};

struct DeepSeekCjk {
  static Bytes match(Bytes p, Bytes end) {
    while (p < end && *p >= 0xE3) {
      const auto [c, length] = utf8::decode(p);
      if (!((c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF))) break;
      p += length;
    }
    return p;
  }
};

struct DeepSeekWords {
  const unicode::Table& table = unicode::Table::instance();

  Bytes match(Bytes p, Bytes end) const {
    const auto [properties, length] = character_at(table, p);
    const Bytes next = p + length;
    const bool is_sign = (properties & (kPunctuation | kSymbol)) != 0;
    if (is_sign && *p < 0x80 && next < end && is_ascii_letter(*next)) {
      Bytes q = next + 1;
      while (q < end && is_ascii_letter(*q)) ++q;
      return q;
    }
    if ((properties & (kLetter | kMark)) != 0) return skip<kLetter | kMark>(table, next, end);
    const Character following = next < end ? character_at(table, next) : Character{kSpace, 0};
    if (!is_sign && (properties & kNewline) == 0 && (following.properties & (kLetter | kMark)) != 0) {
      return skip<kLetter | kMark>(table, next + following.length, end);
    }
    if (is_sign) return signs(next, end);
    if (*p == ' ' && (following.properties & (kPunctuation | kSymbol)) != 0) {
      return signs(next + following.length, end);
    }
    return (properties & kSpace) != 0 ? match_lines_or_spaces(table, p, end) : p;
  }

 private:
  static bool is_ascii_letter(unsigned char byte) { return (byte | 0x20u) >= 'a' && (byte | 0x20u) <= 'z'; }
  Bytes signs(Bytes p, Bytes end) const {
    return skip<kNewline>(table, skip<kPunctuation | kSymbol>(table, p, end), end);
  }
};

template <typename Matcher>
class KnownPattern final : public SplitPattern {
 public:
  explicit KnownPattern(std::string_view source) : SplitPattern(std::string(source), false) {}

  void find(std::string_view text, std::vector<Segment>& segments) const override {
    const auto* begin = reinterpret_cast<const unsigned char*>(text.data());
    const Bytes end = begin + text.size();
    const auto add = [&](Bytes from, Bytes to, bool matched) {
      segments.push_back({static_cast<uint32_t>(from - begin), static_cast<uint32_t>(to - begin), matched});
    };
    Bytes gap = begin;
    Bytes p = begin;
    while (p < end) {
      const Bytes q = matcher_.match(p, end);
      if (q == p) {
        p += utf8::decode(p).length;
        continue;
      }
      if (gap < p) add(gap, p, false);
      add(p, q, true);
      gap = p = q;
    }
    if (gap < end) add(gap, end, false);
  }

 private:
  Matcher matcher_;
};

}  // namespace

std::shared_ptr<const SplitPattern> find_known_pattern(std::string_view text) {
  // Some files have line breaks themselves where others write \r and \n.
  std::string source;
  for (const char c : text) {
    if (c == '\r' || c == '\n')
      source += c == '\r' ? "\\r" : "\\n";
    else
      source += c;
  }
  if (source == kGpt2Pattern) return std::make_shared<KnownPattern<Gpt2>>(source);
  if (source == kLlama3Pattern) return std::make_shared<KnownPattern<Llama3<3>>>(source);
  if (source == kQwen2Pattern) return std::make_shared<KnownPattern<Llama3<1>>>(source);
  if (source == kDeepSeekNumberPattern) return std::make_shared<KnownPattern<DeepSeekNumbers>>(source);
  if (source == kDeepSeekCjkPattern) return std::make_shared<KnownPattern<DeepSeekCjk>>(source);
  if (source == kDeepSeekWordPattern) return std::make_shared<KnownPattern<DeepSeekWords>>(source);
  return nullptr;
}

}  // namespace distill::data
