// Llama 3's RoPE scaling as GGUF stores it: not its parameters but what they come to, one factor per frequency.
#pragma once

#include <nlohmann/json.hpp>
#include <span>

namespace distill::data {

// `factors` is rope_freqs.weight, [head_dim / 2]: what each inverse frequency theta^(-2i / head_dim) is divided by.
// Returns a config's "rope_scaling" of type "llama3" that leads to the same factors, within 1e-4 of each (null if all
// are 1). The parameters matter only by their ratios; low_freq_factor is taken to be 1, as every published model has
// it. Throws Error if no such parameters exist.
nlohmann::json llama3_rope_scaling(std::span<const float> factors, double theta);

}  // namespace distill::data
