// Checks of options' values whose messages say what is allowed, and options that several commands share.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "data/chat_template.h"

namespace distill::cli {

// `name` is what --help shows beside the type.
inline CLI::Validator at_least(int64_t least, const char* name) {
  const auto check = [least](const std::string& text) -> std::string {
    int64_t value = 0;
    const bool number = CLI::detail::lexical_cast(text, value);
    return number && value >= least ? "" : fmt::format("{} is not a whole number from {} on", text, least);
  };
  return CLI::Validator(name).operation(check);
}

inline CLI::Validator positive() {
  return at_least(1, "POSITIVE");
}

inline CLI::Validator non_negative() {
  return at_least(0, "NONNEGATIVE");
}

inline CLI::Validator positive_number() {
  const auto check = [](const std::string& text) -> std::string {
    double value = 0;
    const bool number = CLI::detail::lexical_cast(text, value);
    return number && std::isfinite(value) && value > 0 ? "" : fmt::format("{} is not a number above 0", text);
  };
  return CLI::Validator("POSITIVE").operation(check);
}

// --chat-template: one of the families that distill knows.
inline CLI::Validator chat_template_family() {
  const auto check = [](const std::string& text) -> std::string {
    for (const auto family : data::ChatTemplate::families()) {
      if (family == text) return "";
    }
    return fmt::format("there is no family '{}'; known are {}", text, fmt::join(data::ChatTemplate::families(), ", "));
  };
  return CLI::Validator("").operation(check);
}

inline void add_chat_template_option(CLI::App& command, std::string& family) {
  command
      .add_option("--chat-template", family, "Family of the chat template, where the model has none or an unknown one")
      ->check(chat_template_family());
}

inline void add_thinking_budget_option(CLI::App& command, std::optional<int64_t>& budget) {
  command
      .add_option("--thinking-budget", budget,
                  "End reasoning (<think> ... </think>) after so many tokens; no limit if left out")
      ->check(non_negative());
}

inline void add_cache_dtype_option(CLI::App& command, bool& fp8) {
  command
      .add_option_function<std::string>(
          "--cache-dtype", [&fp8](const std::string& type) { fp8 = type == "fp8"; },
          "What a DeepSeek model's cache holds: auto, as it computes, or fp8, in little more than half the memory")
      ->check(CLI::IsMember({"auto", "fp8"}))
      ->default_str("auto");
}

}  // namespace distill::cli
