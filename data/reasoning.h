// Answers that think aloud first: "<think>" ... "</think>" and then the answer proper, as DeepSeek-R1 and others write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "data/tokenizer.h"

namespace distill::data {

// The tokens that enclose reasoning.
struct ReasoningTokens {
  int32_t open = 0;   // "<think>"
  int32_t close = 0;  // "</think>"
  bool operator==(const ReasoningTokens&) const = default;
};

// Those of a tokenizer that has a single token for each.
std::optional<ReasoningTokens> find_reasoning_tokens(const Tokenizer& tokenizer);

// Whether text that follows these tokens is reasoning: it was opened and not closed. Templates may open it themselves,
// at the end of the prompt.
bool is_open(std::span<const int32_t> tokens, const ReasoningTokens& markers);

// How many tokens of a completion are reasoning, from the first, markers included; the rest is the answer. All of them
// if reasoning was opened and never closed, none if it was never opened.
size_t reasoning_length(std::span<const int32_t> prompt, std::span<const int32_t> completion,
                        const ReasoningTokens& markers);

}  // namespace distill::data
