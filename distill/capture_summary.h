// What came of answering prompts: how much was written, and what was left out.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "nn/generation_engine.h"

namespace distill {

struct RejectedPrompt {
  std::string id;
  std::string reason;
};

// Of this run, unless it says otherwise.
struct CaptureSummary {
  uint64_t already_there = 0;  // traces of earlier runs that this one would have made
  uint64_t traces = 0;
  uint64_t prompt_tokens = 0;
  uint64_t completion_tokens = 0;
  uint64_t reasoning_tokens = 0;             // of these
  std::array<uint64_t, 2> finish_reasons{};  // by data::FinishReason
  std::array<uint64_t, 3> verdicts{};        // by data::Verdict
  double seconds = 0;
  std::vector<RejectedPrompt> rejected;  // that the model cannot answer, such as too long ones
  bool interrupted = false;
  std::vector<nn::DraftCount> drafts{};  // tokens guessed ahead, by distance
  // Of the whole set; not measured if interrupted, when its last shard is still a journal.
  uint64_t total_traces = 0;
  uint64_t total_completion_tokens = 0;
  uint64_t total_bytes = 0;

  double tokens_per_second() const;
  double bytes_per_token() const;
  nlohmann::json to_json() const;

  // Fills in what concerns the whole set. Throws Error if it cannot be read.
  void measure_set(const std::filesystem::path& directory);
};

}  // namespace distill
