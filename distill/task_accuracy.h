// How many prompts with known answers a model answers correctly.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "core/progress.h"
#include "data/prompts.h"
#include "distill/text_model.h"

namespace distill {

struct TaskOptions {
  int64_t max_new_tokens = 256;
  int64_t batch = 16;      // answers generated side by side
  int64_t samples = 1;     // answers to each prompt
  double temperature = 0;  // 0 always takes the most probable token
  uint64_t seed = 0;
  std::string chat_template{};  // family, where the model has none of its own
};

struct TaskAccuracy {
  uint64_t samples = 1;           // answers to each prompt
  std::vector<uint64_t> correct;  // of these, for each prompt
  uint64_t unfinished = 0;        // answers that reached max_new_tokens
  // Whether the answer that a prompt got most often is correct (the first of equals), where the verifier compares
  // answers; false where none was given.
  uint64_t votes = 0;
  uint64_t correct_votes = 0;

  uint64_t prompts() const { return correct.size(); }
  uint64_t answers() const { return prompts() * samples; }
  uint64_t correct_answers() const;
  // The probability that at least one of k answers to a prompt is correct, k at most `samples`: the unbiased estimate
  // of Chen et al. 2021 (arXiv 2107.03374, eq. 1). pass(1) is the share of correct answers.
  double pass(uint64_t k) const;
  double majority() const { return votes > 0 ? static_cast<double>(correct_votes) / static_cast<double>(votes) : 0; }
  // {"prompts", "samples", "correct" (answers), "accuracy", "unfinished"}, with several samples also "pass" (by k: 1,
  // 2, 4, ... and `samples`) and "majority" (null if no verifier compares answers).
  nlohmann::ordered_json to_json() const;
};

// Answers each prompt `samples` times and lets its verifier judge. `progress` may be null; it counts answers. Throws
// Error naming the prompt's line if it has no answer or verifier, or cannot be asked; core::Interrupted if a signal
// asks the process to stop.
TaskAccuracy measure_task(const TextModel& model, std::span<const data::Prompt> prompts, const TaskOptions& options,
                          core::Progress* progress);

}  // namespace distill
