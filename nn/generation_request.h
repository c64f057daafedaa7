// What is asked of the generation engine, and what comes back.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/reasoning.h"
#include "data/trace.h"
#include "nn/sampler.h"

namespace distill::nn {

// Ends reasoning that goes on for too long: its closing mark is set in place of what the model would draw.
struct ThinkingBudget {
  data::ReasoningTokens markers;
  int64_t tokens = 0;  // of an answer's reasoning, marks not counted
};

struct GenerateOptions {
  SamplingOptions sampling{};
  int64_t max_new_tokens = 256;  // the model's context may end an answer earlier
  uint64_t seed = 0;
  std::vector<int32_t> stop_tokens{};       // end an answer, as its last token; not part of its text
  std::vector<std::string> stop_strings{};  // end an answer; its text is cut before them. The name of a special token
                                            // is a stop token.
  std::optional<ThinkingBudget> thinking{};
};

struct GenerationRequest {
  std::string id;                    // names the prompt in messages, and keys its random numbers
  std::vector<int32_t> prompt;       // at least one token
  std::vector<uint32_t> samples{0};  // which answers to draw, each from its own random numbers
  GenerateOptions options{};
};

// One answer.
struct Completion {
  std::string id;
  uint32_t sample = 0;
  std::vector<int32_t> prompt;
  std::vector<int32_t> tokens;  // with the stop token, or the tokens that hold the stop string
  std::string text;             // of the tokens without special ones; empty if the engine has no tokenizer
  data::FinishReason finish_reason = data::FinishReason::kStop;
  double log_probability = 0;  // sum over the tokens that were drawn, under the distribution they were drawn from
};

}  // namespace distill::nn
