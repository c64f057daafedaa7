#include "data/gguf_rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "core/error.h"

namespace distill::data {
namespace {

constexpr double kTolerance = 1e-4;

struct Llama3Scaling {
  double factor = 1;
  double high = 4;        // high_freq_factor, where low_freq_factor is 1
  double context = 8192;  // original_max_position_embeddings

  // What the inverse frequency with this many turns per token is divided by (transformers' modeling_rope_utils,
  // _compute_llama3_parameters).
  double divisor(double turns_per_token) const {
    const double turns = context * turns_per_token;  // over the original context
    if (turns < 1) return factor;
    if (turns > high) return 1;
    const double smooth = (turns - 1) / (high - 1);
    return 1 / ((1 - smooth) / factor + smooth);
  }
};

bool same(double a, double b) {
  return std::abs(a - b) <= kTolerance * std::abs(b);
}

// A number that a fit found near a whole one was that one.
double rounded(double value) {
  const double whole = std::round(value);
  return whole > 0 && std::abs(value - whole) <= 1e-3 * whole ? whole : value;
}

// Between the two plateaus, smooth = (context * turns - 1) / (high - 1) is a line in turns: slope context / (high - 1),
// intercept -1 / (high - 1). Fits it by least squares; with fewer than two points there, Llama 3.1's values stand.
Llama3Scaling fit(std::span<const float> factors, const std::vector<double>& turns) {
  Llama3Scaling scaling;
  scaling.factor = rounded(*std::ranges::max_element(factors));
  double count = 0;
  double sum_x = 0;
  double sum_y = 0;
  double sum_xx = 0;
  double sum_xy = 0;
  for (size_t i = 0; i < factors.size(); ++i) {
    if (same(factors[i], 1) || same(factors[i], scaling.factor)) continue;
    const double y = (1 / static_cast<double>(factors[i]) - 1 / scaling.factor) / (1 - 1 / scaling.factor);
    count += 1;
    sum_x += turns[i];
    sum_y += y;
    sum_xx += turns[i] * turns[i];
    sum_xy += turns[i] * y;
  }
  if (count < 2) return scaling;
  const double slope = (count * sum_xy - sum_x * sum_y) / (count * sum_xx - sum_x * sum_x);
  const double intercept = (sum_y - slope * sum_x) / count;
  scaling.high = rounded(1 - 1 / intercept);
  scaling.context = rounded(slope * (scaling.high - 1));
  return scaling;
}

}  // namespace

nlohmann::json llama3_rope_scaling(std::span<const float> factors, double theta) {
  core::check(!factors.empty() && theta > 0, "there are no frequencies to scale");
  core::check(std::ranges::all_of(factors, [](float factor) { return std::isfinite(factor) && factor > 0; }),
              "a factor is not a positive number");
  if (std::ranges::all_of(factors, [](float factor) { return same(factor, 1); })) return nullptr;

  std::vector<double> turns(factors.size());
  for (size_t i = 0; i < turns.size(); ++i) {
    turns[i] = std::pow(theta, -static_cast<double>(i) / static_cast<double>(turns.size())) / (2 * std::numbers::pi);
  }
  const Llama3Scaling scaling = fit(factors, turns);
  for (size_t i = 0; i < factors.size(); ++i) {
    const double expected = scaling.divisor(turns[i]);
    core::check(same(expected, factors[i]),
                "its factors do not follow Llama 3's rule: factor {} is {}, where {} would be expected", i, factors[i],
                expected);
  }
  return {{"rope_type", "llama3"},
          {"factor", scaling.factor},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", scaling.high},
          {"original_max_position_embeddings", std::llround(scaling.context)}};
}

}  // namespace distill::data
