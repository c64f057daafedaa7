// How far each pair of a head's dimensions rotates per position, for the ways in which models stretch their context.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "core/config.h"

namespace distill::nn {

enum class RotaryKind {
  kDefault,  // Su et al., RoFormer, 2021
  kLinear,   // all frequencies divided by `factor` (Chen et al. 2023, position interpolation)
  kLlama3,   // low frequencies divided, high ones kept, a ramp between (Llama 3.1)
  kYarn,     // the same with a ramp over dimensions, and attention sharpened (Peng et al. 2023, YaRN)
};

struct RotaryScaling {
  RotaryKind kind = RotaryKind::kDefault;
  double theta = 10000;
  double factor = 1;
  int64_t original_max_positions = 0;  // the context length before stretching (llama3, yarn)
  double low_freq_factor = 1;          // llama3
  double high_freq_factor = 4;         // llama3
  double beta_fast = 32;               // yarn: dimensions with more rotations than this are kept
  double beta_slow = 1;                // yarn: dimensions with fewer are divided by `factor`
  bool truncate = true;                // yarn: the ramp's ends are rounded to whole dimensions
  double attention_factor = 1;         // what cosines and sines are multiplied with (yarn)

  // [dim / 2] fp32, radians per position.
  at::Tensor inverse_frequencies(int64_t dim) const;
};

// Where a config.json describes its rotary embedding: "rope_scaling" if that says anything, as in transformers, else
// "rope_parameters".
core::ConfigReader rotary_section(core::ConfigReader& config);

// From a Hugging Face config.json in either dialect: "rope_theta" with "rope_scaling", or transformers 5's
// "rope_parameters". Throws UsageError naming the key, also for kinds not named above ("dynamic", "longrope", ...).
RotaryScaling parse_rotary_scaling(core::ConfigReader& config, int64_t max_positions);

// Writes "rope_theta" and "rope_scaling" into a config.json object; every version of transformers reads these.
void write_rotary_scaling(const RotaryScaling& scaling, nlohmann::json& config);

}  // namespace distill::nn
