#include "data/reasoning.h"

#include <algorithm>

namespace distill::data {

std::optional<ReasoningTokens> find_reasoning_tokens(const Tokenizer& tokenizer) {
  const auto open = tokenizer.token_to_id("<think>"), close = tokenizer.token_to_id("</think>");
  if (!open || !close) return std::nullopt;
  return ReasoningTokens{.open = *open, .close = *close};
}

bool is_open(std::span<const int32_t> tokens, const ReasoningTokens& markers) {
  const auto last = std::find_if(tokens.rbegin(), tokens.rend(),
                                 [&](int32_t token) { return token == markers.open || token == markers.close; });
  return last != tokens.rend() && *last == markers.open;
}

size_t reasoning_length(std::span<const int32_t> prompt, std::span<const int32_t> completion,
                        const ReasoningTokens& markers) {
  const auto close = std::find(completion.rbegin(), completion.rend(), markers.close);
  const auto end = static_cast<size_t>(completion.rend() - close);  // 0 if there is none
  const bool opened = is_open(prompt, markers) || std::ranges::count(completion, markers.open) > 0;
  if (!opened) return 0;
  return is_open(completion.subspan(end), markers) || end == 0 ? completion.size() : end;
}

}  // namespace distill::data
