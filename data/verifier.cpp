#include "data/verifier.h"

#include <array>
#include <cmath>
#include <optional>
#include <string>

#include "core/error.h"
#include "core/log.h"
#include "core/sandbox.h"
#include "data/math_answer.h"
#include "data/regex.h"

namespace distill::data {
namespace {

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

std::optional<std::string_view> without_thoughts(std::string_view completion) {
  constexpr std::string_view kEnd = "</think>";
  if (const size_t end = completion.rfind(kEnd); end != std::string_view::npos) {
    return completion.substr(end + kEnd.size());
  }
  if (completion.find("<think>") != std::string_view::npos) return {};
  return completion;
}

constexpr const char* kNumber = R"(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?|-?\.\d+)";

std::optional<double> number_in(std::string_view text) {
  static const Regex number(kNumber);
  static const Regex marked(R"(####\s*\$?\s*()" + std::string(kNumber) + ")");
  std::optional<std::string_view> found;
  if (const auto boxed = last_boxed(text)) {
    if (const auto value = math_value(*boxed)) return value;
    found = number.last(*boxed);
  }
  if (!found) found = marked.last(text, 1);
  if (!found) found = number.last(text);
  return found ? math_value(*found) : std::nullopt;
}

// Percent and currency signs don't matter here: "50%" is 50.
std::optional<double> number_of_answer(std::string_view answer) {
  std::string text(trimmed(answer));
  std::erase_if(text, [](char c) { return c == '%' || c == '$'; });
  return math_value(text);
}

bool is_numeric(std::string_view answer, std::string_view text) {
  std::string plain(text);
  std::erase(plain, '%');
  const auto expected = number_of_answer(answer), actual = number_in(plain);
  return actual && std::abs(*actual - *expected) <= 1e-9 * std::max(std::abs(*actual), std::abs(*expected));
}

std::optional<char> letter_of_answer(std::string_view answer) {
  static const Regex letter(R"(^\s*\(?([A-Za-z])\)?[.:)]?\s*$)");
  const auto found = letter.first(answer, 1);
  if (!found) return {};
  return static_cast<char>((*found)[0] & ~0x20);
}

std::optional<char> choice_in(std::string_view text) {
  static const std::array patterns{
      Regex(R"((?i)answer(?:\s+is|\s*:)[\s*:]*(?:\\text\{)?\(?([A-Za-z])(?![A-Za-z]))"),
      Regex(R"((?:\(|\*\*)([A-Z])(?:\)|[.:]?\*\*))"),
      Regex(R"((?m)^\s*([A-Z])(?:[.):]|\s*$))"),
  };
  if (const auto boxed = last_boxed(text)) {
    if (const auto letter = letter_of_answer(normalise_math(*boxed))) return letter;
  }
  for (const Regex& pattern : patterns) {
    if (const auto found = pattern.last(text, 1)) return static_cast<char>((*found)[0] & ~0x20);
  }
  return {};
}

// Where a text states a formula, the likeliest first.
std::optional<std::string_view> formula_in(std::string_view text) {
  static const Regex stated(R"((?i)answer(?:\s+is|\s*:)\s*[:*]*\s*([^\n]*?)[\s*]*(?:\.?\s*(?:\n|$)|\.\s))");
  static const Regex dollars(R"(\$+([^$\n]+)\$+)");
  static const Regex number(kNumber);
  if (const auto boxed = last_boxed(text)) return boxed;
  for (const auto& candidate : {stated.last(text, 1), dollars.last(text, 1), number.last(text)}) {
    if (candidate) return candidate;
  }
  return {};
}

// "x = 5" states 5.
std::string_view right_side(std::string_view formula) {
  const size_t equals = formula.rfind('=');
  return equals == std::string_view::npos ? formula : formula.substr(equals + 1);
}

bool is_math(std::string_view answer, std::string_view text) {
  const auto expected = last_boxed(answer).value_or(answer);
  const auto found = formula_in(text);
  return found && (same_math(*found, expected) || (!last_boxed(text) && same_math(right_side(*found), expected)));
}

std::optional<std::string> exact_answer(std::string_view text) {
  return std::string(trimmed(text));
}

std::optional<std::string> numeric_answer(std::string_view text) {
  const auto number = number_in(text);
  return number ? std::optional(fmt::format("{:.9g}", *number)) : std::nullopt;
}

std::optional<std::string> choice_answer(std::string_view text) {
  const auto letter = choice_in(text);
  return letter ? std::optional(std::string(1, *letter)) : std::nullopt;
}

std::optional<std::string> math_answer(std::string_view text) {
  const auto formula = formula_in(text);
  if (!formula) return {};
  if (const auto value = math_value(right_side(*formula))) return fmt::format("{:.9g}", *value);
  return normalise_math(right_side(*formula));
}

struct Verifier {
  std::string_view name;
  void (*check)(std::string_view answer);
  bool (*accepts)(std::string_view answer, std::string_view text);
  std::optional<std::string> (*extract)(std::string_view text);  // may be null
};

constexpr std::string_view kProgram = "program";

constexpr std::array kVerifiers{
    Verifier{"exact", [](std::string_view) {},
             [](std::string_view answer, std::string_view text) { return trimmed(text) == trimmed(answer); },
             &exact_answer},
    Verifier{"numeric",
             [](std::string_view answer) {
               core::check(number_of_answer(answer).has_value(), "the answer '{}' is no number", answer);
             },
             &is_numeric, &numeric_answer},
    Verifier{"choice",
             [](std::string_view answer) {
               core::check(letter_of_answer(answer).has_value(), "the answer '{}' is no single letter", answer);
             },
             [](std::string_view answer, std::string_view text) { return choice_in(text) == letter_of_answer(answer); },
             &choice_answer},
    Verifier{"math",
             [](std::string_view answer) {
               core::check(!normalise_math(answer).empty(), "the answer '{}' is no expression", answer);
             },
             &is_math, &math_answer},
    Verifier{"regex", [](std::string_view answer) { Regex{answer}; },
             [](std::string_view answer, std::string_view text) { return Regex(answer).first(text).has_value(); },
             nullptr},
    Verifier{kProgram,
             [](std::string_view answer) { core::check(!trimmed(answer).empty(), "the answer names no command"); },
             [](std::string_view answer, std::string_view text) {
               const auto result = core::run_in_sandbox(std::string(answer), text);
               // Most likely a mistake in the task; but a program that runs the answer as code may end so too.
               if (result.exit_code == 127) core::log::warn("'{}' ended like a command that was not found", answer);
               return result.exit_code == 0;
             },
             nullptr},
};

const Verifier& find_verifier(std::string_view name) {
  for (const Verifier& verifier : kVerifiers) {
    if (verifier.name == name) return verifier;
  }
  std::array<std::string_view, kVerifiers.size()> names;
  for (size_t i = 0; i < names.size(); ++i) names[i] = kVerifiers[i].name;
  core::fail_usage("there is no verifier '{}'; known are {}", name, fmt::join(names, ", "));
}

}  // namespace

void check_verifier(std::string_view verifier, std::string_view answer) {
  find_verifier(verifier).check(answer);
}

std::optional<std::string> extract_answer(std::string_view verifier, std::string_view completion) {
  const Verifier& chosen = find_verifier(verifier);
  const auto text = without_thoughts(completion);
  return text && chosen.extract ? chosen.extract(*text) : std::nullopt;
}

bool compares_answers(std::string_view verifier) {
  return find_verifier(verifier).extract != nullptr;
}

bool runs_program(std::string_view verifier) {
  return verifier == kProgram;
}

Verdict verify(std::string_view verifier, std::string_view answer, std::string_view completion) {
  const Verifier& chosen = find_verifier(verifier);
  chosen.check(answer);
  const auto text = without_thoughts(completion);
  return text && chosen.accepts(answer, *text) ? Verdict::kCorrect : Verdict::kIncorrect;
}

}  // namespace distill::data
