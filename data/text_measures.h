// What can be said of an answer without understanding it, to leave out the degenerate ones.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace distill::data {

// Share of the runs of four tokens that occurred before: near 0 in prose, near 1 in loops. 0 for less than five tokens.
double repetition(std::span<const int32_t> tokens);

// Share of the letters that belong to the script, by its name in the Unicode standard ("Latin", "Han", "Cyrillic",
// ...). 1 for text without letters. Throws UsageError if there is no such script.
double script_share(std::string_view text, std::string_view script);

// The language that most of a text is in, as a code such as "en", "de" or "zh" (CLD2 tells 83 apart); empty where that
// cannot be said with confidence: text of a few words, formulas, code.
std::string language(std::string_view text);

// Throws UsageError unless language() may say this.
void check_language(std::string_view code);

}  // namespace distill::data
