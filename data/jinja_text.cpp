#include "data/jinja_text.h"

#include <algorithm>
#include <cctype>

#include "data/unicode_table.h"
#include "data/utf8.h"

namespace distill::data::jinja {
namespace {

bool is_python_space(char32_t c) {
  return (c >= 0x1C && c <= 0x1F) || (unicode::Table::instance()[c] & unicode::kSpace) != 0;
}

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

bool is_name(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](unsigned char c) { return std::isalnum(c) || c == '_'; });
}

// The value of a string literal's inside, in either kind of quotes.
std::string literal_value(std::string_view inside) {
  std::string value;
  for (size_t i = 0; i < inside.size(); ++i) {
    if (inside[i] != '\\' || i + 1 == inside.size()) {
      value += inside[i];
      continue;
    }
    switch (const char escaped = inside[++i]) {
      case 'n':
        value += '\n';
        break;
      case 't':
        value += '\t';
        break;
      case 'r':
        value += '\r';
        break;
      case '\\':
      case '\'':
      case '"':
        value += escaped;
        break;
      default:
        value += '\\';
        value += escaped;
    }
  }
  return value;
}

std::string escaped(std::string_view value) {
  std::string literal;
  for (const char c : value) {
    switch (c) {
      case '\n':
        literal += "\\n";
        break;
      case '\t':
        literal += "\\t";
        break;
      case '\r':
        literal += "\\r";
        break;
      case '\\':
      case '\'':
        literal += '\\';
        [[fallthrough]];
      default:
        literal += c;
    }
  }
  return literal;
}

class Normaliser {
 public:
  explicit Normaliser(std::string_view source) : source_(source) {
    if (source_.ends_with('\n')) source_.remove_suffix(1);
  }

  std::string run() {
    size_t i = 0;
    while (i < source_.size()) {
      const size_t open = next_tag(i);
      put_text(source_.substr(i, open - i), open);
      if (open == source_.size()) break;
      i = put_tag(open);
    }
    return std::move(result_);
  }

 private:
  size_t next_tag(size_t from) const {
    for (size_t i = from; i + 1 < source_.size(); ++i) {
      if (source_[i] == '{' && std::string_view("{%#").find(source_[i + 1]) != std::string_view::npos) return i;
    }
    return source_.size();
  }

  // Text between the tag before and the one at `open`, as far as it is printed.
  void put_text(std::string_view text, size_t open) {
    const bool at_start = open == text.size();
    if (strips_after_) {
      while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
    } else if (after_block_ && text.starts_with('\n')) {
      text.remove_prefix(1);
    }
    const std::string_view tag = source_.substr(open);
    if (tag.size() > 2 && tag[2] == '-') {
      while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
    } else if (tag.size() > 1 && tag[1] != '{') {
      // lstrip_blocks: blanks from the beginning of the line.
      const size_t last = text.find_last_not_of(" \t");
      const bool whole_line =
          last == std::string_view::npos ? at_start || after_block_ || strips_after_ : text[last] == '\n';
      if (whole_line) text = text.substr(0, last == std::string_view::npos ? 0 : last + 1);
    }
    if (!text.empty()) result_ += "{{'" + escaped(text) + "'}}";
  }

  // Writes the tag at `open`; returns where it ends.
  size_t put_tag(size_t open) {
    const char kind = source_[open + 1];
    if (kind == '#') {
      const size_t close = source_.find("#}", open + 2);
      if (close == std::string_view::npos) return source_.size();
      end_tag(source_[close - 1] == '-', true);
      return close + 2;
    }
    const std::string_view closing = kind == '{' ? "}}" : "%}";
    result_ += source_.substr(open, 2);
    after_literal_ = false;
    size_t i = open + 2;
    if (i < source_.size() && (source_[i] == '-' || source_[i] == '+')) ++i;
    while (i < source_.size() && !source_.substr(i).starts_with(closing)) {
      const char c = source_[i];
      if (c == '\'' || c == '"') {
        i = put_literal(i);
      } else {
        if (!is_blank(c)) put_code(c);
        ++i;
      }
    }
    const bool strips = result_.ends_with('-');
    if (strips) result_.pop_back();
    result_ += closing;
    end_tag(strips, kind == '%');
    return std::min(i + 2, source_.size());
  }

  void end_tag(bool strips, bool is_block) {
    strips_after_ = strips;
    after_block_ = is_block;
  }

  // Writes the literal that opens at `open`; returns where it ends.
  size_t put_literal(size_t open) {
    size_t close = open + 1;
    while (close < source_.size() && source_[close] != source_[open]) close += source_[close] == '\\' ? 2 : 1;
    const std::string value = literal_value(source_.substr(open + 1, std::min(close, source_.size()) - open - 1));
    if (after_literal_ && result_.ends_with("'+")) {
      result_.erase(result_.size() - 2);
    } else {
      result_ += '\'';
    }
    result_ += escaped(value) + '\'';
    after_literal_ = true;
    return std::min(close + 1, source_.size());
  }

  void put_code(char c) {
    result_ += c;
    if (c == ']' && after_literal_ && result_.ends_with("']")) {
      const size_t bracket = result_.rfind("['");
      if (bracket != std::string::npos) {
        const std::string name = result_.substr(bracket + 2, result_.size() - bracket - 4);
        if (is_name(name)) result_.replace(bracket, std::string::npos, "." + name);
      }
    }
    after_literal_ = after_literal_ && c == '+';
  }

  std::string_view source_;
  std::string result_;
  bool strips_after_ = false;   // the tag before ends with a minus
  bool after_block_ = false;    // and is a block or a comment
  bool after_literal_ = false;  // what was written last is a literal, or that and a plus
};

}  // namespace

std::string normalised(std::string_view jinja) {
  return Normaliser(jinja).run();
}

std::optional<std::vector<std::string_view>> match(std::string_view text,
                                                   std::initializer_list<std::string_view> pieces) {
  std::vector<std::string_view> gaps;
  if (!text.starts_with(*pieces.begin())) return std::nullopt;
  text.remove_prefix(pieces.begin()->size());
  for (const auto* piece = pieces.begin() + 1; piece != pieces.end(); ++piece) {
    const bool is_last = piece + 1 == pieces.end();
    const size_t at = is_last ? text.rfind(*piece) : text.find(*piece);
    if (at == std::string_view::npos || (is_last && at + piece->size() != text.size())) return std::nullopt;
    gaps.push_back(text.substr(0, at));
    text.remove_prefix(at + piece->size());
  }
  if (!text.empty()) return std::nullopt;
  return gaps;
}

std::optional<std::string> unescape(std::string_view literal) {
  for (size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] == '\'') return std::nullopt;
    if (literal[i] == '\\') ++i;
  }
  return literal_value(literal);
}

bool take_prefix(std::string_view& text, std::string_view part) {
  if (!text.starts_with(part)) return false;
  text.remove_prefix(part.size());
  return true;
}

std::string_view strip(std::string_view text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  size_t begin = 0;
  while (begin < text.size()) {
    const auto [c, length] = utf8::decode(bytes + begin);
    if (!is_python_space(c)) break;
    begin += length;
  }
  size_t end = text.size();
  while (end > begin) {
    size_t last = end - 1;
    while (last > begin && (bytes[last] & 0xC0u) == 0x80u) --last;
    if (!is_python_space(utf8::decode(bytes + last).code_point)) break;
    end = last;
  }
  return text.substr(begin, end - begin);
}

std::string_view lstrip(std::string_view text, char character) {
  text.remove_prefix(std::min(text.find_first_not_of(character), text.size()));
  return text;
}

std::string_view rstrip(std::string_view text, char character) {
  const size_t last = text.find_last_not_of(character);
  return text.substr(0, last == std::string_view::npos ? 0 : last + 1);
}

std::string_view strip(std::string_view text, char character) {
  return lstrip(rstrip(text, character), character);
}

std::string_view before_first(std::string_view text, std::string_view separator) {
  return text.substr(0, text.find(separator));
}

std::string_view after_last(std::string_view text, std::string_view separator) {
  const size_t at = text.rfind(separator);
  return at == std::string_view::npos ? text : text.substr(at + separator.size());
}

}  // namespace distill::data::jinja
