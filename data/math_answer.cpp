#include "data/math_answer.h"

#include <array>
#include <charconv>
#include <cmath>
#include <utility>

namespace distill::data {
namespace {

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// The length of the group that begins with the brace at text[0], both braces included; 0 if it never ends.
size_t group_length(std::string_view text) {
  int depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '{') ++depth;
    if (text[i] == '}' && --depth == 0) return i + 1;
  }
  return 0;
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// \text{ cm} and the like: the words go, since units are rarely part of a reference answer.
void remove_text_groups(std::string& text) {
  for (const std::string_view command : {"\\text{", "\\mathrm{", "\\mbox{", "\\textbf{", "\\mathbf{"}) {
    size_t at = 0;
    while ((at = text.find(command, at)) != std::string::npos) {
      const size_t brace = at + command.size() - 1;
      const size_t length = group_length(std::string_view(text).substr(brace));
      if (length == 0) break;
      const std::string inside = text.substr(brace + 1, length - 2);
      // A unit behind a value is dropped; a word that is the whole answer stays.
      const bool unit = at > 0;
      text.replace(at, command.size() - 1 + length, unit ? "" : inside);
    }
  }
}

// \frac12, \frac1{2} and \frac{1}2 in braces.
void brace_fractions(std::string& text) {
  constexpr std::string_view kFraction = "\\frac";
  for (size_t at = text.find(kFraction); at != std::string::npos; at = text.find(kFraction, at + 1)) {
    size_t argument = at + kFraction.size();
    for (int i = 0; i < 2 && argument < text.size(); ++i) {
      if (text[argument] == '{') {
        const size_t length = group_length(std::string_view(text).substr(argument));
        if (length == 0) return;
        argument += length;
      } else {
        text.replace(argument, 1, std::string{'{', text[argument], '}'});
        argument += 3;
      }
    }
  }
}

// "1,234,567" as "1234567": a comma with exactly three digits behind it and a digit before.
void remove_thousands(std::string& text) {
  for (size_t i = 1; i + 3 < text.size(); ++i) {
    if (text[i] != ',' || !is_digit(text[i - 1])) continue;
    const bool three = is_digit(text[i + 1]) && is_digit(text[i + 2]) && is_digit(text[i + 3]);
    if (three && (i + 4 >= text.size() || !is_digit(text[i + 4]))) text.erase(i--, 1);
  }
}

std::optional<double> plain_number(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  if (text.empty()) return {};
  if (const char c = text.front(); !is_digit(c) && c != '-' && c != '.') return {};
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return {};
  return value;
}

}  // namespace

std::optional<std::string_view> last_boxed(std::string_view text) {
  std::optional<std::string_view> result;
  for (const std::string_view command : {"\\boxed", "\\fbox"}) {
    for (size_t at = text.rfind(command); at != std::string_view::npos && !result;
         at = at == 0 ? std::string_view::npos : text.rfind(command, at - 1)) {
      std::string_view rest = text.substr(at + command.size());
      while (rest.starts_with(' ')) rest.remove_prefix(1);
      if (!rest.starts_with('{')) continue;
      if (const size_t length = group_length(rest); length > 0) result = rest.substr(1, length - 2);
    }
  }
  return result;
}

std::string normalise_math(std::string_view expression) {
  std::string text(expression);
  constexpr std::array<std::pair<std::string_view, std::string_view>, 24> kReplacements{{
      {"\\left", ""},        {"\\right", ""}, {"\\!", ""},
      {"\\,", ""},           {"\\;", ""},     {"\\:", ""},
      {"\\ ", ""},           {"~", ""},       {"\\(", ""},
      {"\\)", ""},           {"\\[", ""},     {"\\]", ""},
      {"\\$", ""},           {"$", ""},       {"\\%", "%"},
      {"^{\\circ}", ""},     {"^\\circ", ""}, {"\\dfrac", "\\frac"},
      {"\\tfrac", "\\frac"}, {"{,}", ","},    {"\\cdot", "*"},
      {"\\times", "*"},      {"−", "-"},      {"\\displaystyle", ""},
  }};
  for (const auto& [from, to] : kReplacements) replace_all(text, from, to);
  remove_text_groups(text);
  std::erase_if(text, [](char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; });
  while (text.ends_with('.') || text.ends_with(',')) text.pop_back();
  brace_fractions(text);
  remove_thousands(text);
  return text;
}

std::optional<double> math_value(std::string_view expression) {
  std::string text = normalise_math(expression);
  double sign = 1;
  if (text.starts_with('-')) {
    sign = -1;
    text.erase(0, 1);
  }
  if (text.ends_with('%')) {
    sign /= 100;
    text.pop_back();
  }
  std::optional<double> above, below = 1.0;
  constexpr std::string_view kFraction = "\\frac";
  if (text.starts_with(kFraction)) {
    const std::string_view arguments = std::string_view(text).substr(kFraction.size());
    const size_t first = group_length(arguments);
    if (!arguments.starts_with('{') || first == 0 || !arguments.substr(first).starts_with('{')) return {};
    const size_t second = group_length(arguments.substr(first));
    if (second == 0 || first + second != arguments.size()) return {};
    above = plain_number(arguments.substr(1, first - 2));
    below = plain_number(arguments.substr(first + 1, second - 2));
  } else if (const size_t slash = text.find('/'); slash != std::string::npos) {
    above = plain_number(std::string_view(text).substr(0, slash));
    below = plain_number(std::string_view(text).substr(slash + 1));
  } else {
    above = plain_number(text);
  }
  if (!above || !below || *below == 0) return {};
  return sign * *above / *below;
}

bool same_math(std::string_view a, std::string_view b) {
  const auto value_a = math_value(a), value_b = math_value(b);
  if (value_a && value_b) {
    return std::abs(*value_a - *value_b) <= 1e-9 * std::max(std::abs(*value_a), std::abs(*value_b));
  }
  return !value_a && !value_b && normalise_math(a) == normalise_math(b);
}

}  // namespace distill::data
