// A training run's settings, read from a YAML file and the command line. recipes/ has examples with every key.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "distill/objective.h"
#include "distill/optimizer.h"
#include "distill/schedule.h"
#include "distill/spike_guard.h"

namespace distill::core {
class ConfigReader;
}

namespace distill {

// Who writes the answers that a student is scored on, where teachers are here to score them (GKD, Agarwal et al. 2024,
// arXiv 2306.13649, algorithm 1): the student or the first teacher anew, otherwise whoever wrote the traces.
struct OnPolicyOptions {
  double student_share = 0.0;  // of the batches
  double teacher_share = 0.0;
  double temperature = 1.0;      // answers are drawn at
  int64_t max_new_tokens = 128;  // of an answer
};

struct Recipe {
  ObjectiveOptions objective;
  OptimizerOptions optimizer;
  Schedule schedule;
  double clip_norm = 1.0;             // gradients longer than this are shortened to it; 0 leaves them
  int64_t batch_tokens = 8192;        // of the traces per step of the optimizer; new answers may be longer or shorter
  int64_t micro_batch_tokens = 4096;  // per forward and backward pass; documents are cut to it
  double validation_share = 0.05;     // of the prompts, kept from training
  int64_t validate_every = 100;       // steps; 0 only at the end
  int64_t patience = 0;               // validations in a row without a new least loss that end the run; 0: none do
  SpikeGuardOptions guard;
  OnPolicyOptions on_policy;
  bool recompute_activations = false;  // in the backward pass instead of keeping them: less memory, more time
  int64_t checkpoint_every = 200;      // steps; 0 only at the end
  int64_t keep_checkpoints = 2;
  uint64_t seed = 0;
  at::ScalarType compute = at::kBFloat16;

  // Throws UsageError naming file, key and reason: unknown keys with the nearest known one, wrong types, values that
  // make no sense.
  static Recipe from_file(const std::filesystem::path& path);
  static Recipe from_json(const nlohmann::json& json, const std::string& location);
  // What from_json reads back.
  nlohmann::json to_json() const;

  // "optimizer learning_rate: 0.001 against 0.002" for the first setting that a run may not change between two of its
  // parts, or empty. The number of steps and how often to validate and save may change.
  std::string difference(const Recipe& other) const;

 private:
  static Recipe from_reader(core::ConfigReader& reader);
};

// "fp32" or "bf16". Throws UsageError.
at::ScalarType parse_precision(std::string_view name);
std::string_view precision_name(at::ScalarType type);

}  // namespace distill
