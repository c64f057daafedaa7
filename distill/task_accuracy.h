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
  int64_t batch = 16;           // answers generated side by side
  std::string chat_template{};  // family, where the model has none of its own
};

struct TaskAccuracy {
  uint64_t prompts = 0;
  uint64_t correct = 0;
  uint64_t unfinished = 0;     // answers that reached max_new_tokens
  std::vector<bool> verdicts;  // of each prompt

  double accuracy() const { return prompts > 0 ? static_cast<double>(correct) / static_cast<double>(prompts) : 0; }
  nlohmann::ordered_json to_json() const;
};

// Answers each prompt once, always with the most probable token, and lets its verifier judge. `progress` may be null;
// it counts prompts. Throws Error naming the prompt's line if it has no answer or verifier, or cannot be asked;
// core::Interrupted if a signal asks the process to stop.
TaskAccuracy measure_task(const TextModel& model, std::span<const data::Prompt> prompts, const TaskOptions& options,
                          core::Progress* progress);

}  // namespace distill
