// What a quickstart found out, for people and for scripts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "distill/capture.h"
#include "distill/evaluation.h"

namespace distill {

// One column of the comparison.
struct QuickstartModel {
  std::string name;
  int64_t parameters = 0;
  uint64_t bytes = 0;                       // of its weights on disk
  double cross_entropy = 0;                 // of the held-out answers, nats per token
  std::optional<Evaluation> held_out{};     // of a student: against the teacher's distributions
  double training_tokens_per_second = 0;    // of a student
  double generation_tokens_per_second = 0;  // answering side by side
  std::vector<std::string> answers{};       // to QuickstartReport::questions
};

struct QuickstartReport {
  CaptureSummary traces;
  uint64_t held_out_traces = 0;
  int64_t steps = 0;                    // of training, for each student
  uint64_t tokens_per_student = 0;      // read in them
  std::vector<QuickstartModel> models;  // the teacher, the distilled student, the one trained on hard labels
  std::vector<std::string> questions;
  std::filesystem::path student;  // the exported directory
  double seconds = 0;             // this time

  nlohmann::ordered_json to_json() const;
  // A table and the answers side by side.
  std::string to_text() const;
};

}  // namespace distill
