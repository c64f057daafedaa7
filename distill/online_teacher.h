// A teacher that scores the tokens during training, in place of the distributions that traces store.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "nn/causal_lm.h"

namespace distill {

struct OnlineTeacher {
  std::shared_ptr<nn::CausalLM> model;
  double weight = 1.0;  // of its divergence; those of all teachers sum to 1
  at::Tensor head{};    // the model's head_weight(), [vocab, size]; filled in by Objective
  // Where it lies, and who it is: fingerprints of its weights and config as traces have them (data::TraceProvenance).
  std::string path{}, weights_fingerprint{}, config_fingerprint{};
};

// Who the teachers of a run are, as a checkpoint and a report say it: [] without any.
nlohmann::json describe_teachers(std::span<const OnlineTeacher> teachers);

// What is another teacher, or another weight, in the second of two such descriptions, or empty. Where a teacher lies
// does not matter.
std::string teachers_difference(const nlohmann::json& there, const nlohmann::json& here);

}  // namespace distill
