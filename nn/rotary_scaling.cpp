#include "nn/rotary_scaling.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string>
#include <utility>

#include "core/error.h"

namespace distill::nn {
namespace {

constexpr std::array<std::pair<RotaryKind, const char*>, 4> kKindNames{{
    {RotaryKind::kDefault, "default"},
    {RotaryKind::kLinear, "linear"},
    {RotaryKind::kLlama3, "llama3"},
    {RotaryKind::kYarn, "yarn"},
}};

constexpr double kLargest = 1e15;  // thetas and factors beyond this are damage, not design

double positive(core::ConfigReader& config, std::string_view key, double value) {
  if (!(value > 0 && value <= kLargest)) config.reject(key, fmt::format("{} is not a sensible value", value));
  return value;
}

double require_positive(core::ConfigReader& config, std::string_view key) {
  return positive(config, key, config.require<double>(key));
}

RotaryKind parse_kind(core::ConfigReader& section) {
  const auto named = section.find<std::string>("rope_type");
  const auto old_name = section.find<std::string>("type");
  const std::string name = named ? *named : old_name.value_or("default");
  for (const auto& [kind, kind_name] : kKindNames) {
    if (name == kind_name) return kind;
  }
  section.reject(named ? "rope_type" : "type",
                 fmt::format("\"{}\" is not supported; known are default, linear, llama3 and yarn", name));
}

// How much YaRN sharpens attention for a context stretched by `scale` (Peng et al. 2023, eq. 22; DeepSeek's mscale).
double yarn_attention(double scale, double mscale = 1) {
  return scale <= 1 ? 1 : 0.1 * mscale * std::log(scale) + 1;
}

void parse_yarn(core::ConfigReader& section, int64_t max_positions, RotaryScaling& scaling) {
  scaling.factor = positive(section, "factor",
                            section.get<double>("factor", static_cast<double>(max_positions) /
                                                              static_cast<double>(scaling.original_max_positions)));
  // Zero stands for "not given" here, as in transformers.
  const auto given = [&](std::string_view key, double fallback) {
    const double value = section.get<double>(key, 0);
    return value == 0 ? fallback : positive(section, key, value);
  };
  scaling.beta_fast = given("beta_fast", 32);
  scaling.beta_slow = given("beta_slow", 1);
  scaling.truncate = section.get<bool>("truncate", true);
  const double mscale = given("mscale", 0);
  const double mscale_all_dim = given("mscale_all_dim", 0);
  scaling.attention_factor = mscale > 0 && mscale_all_dim > 0 ? yarn_attention(scaling.factor, mscale) /
                                                                    yarn_attention(scaling.factor, mscale_all_dim)
                                                              : yarn_attention(scaling.factor);
  if (const auto factor = section.find<double>("attention_factor")) {
    scaling.attention_factor = positive(section, "attention_factor", *factor);
  }
}

void refuse_unsupported(core::ConfigReader& config) {
  if (config.get<double>("partial_rotary_factor", 1.0) != 1.0) {
    config.reject("partial_rotary_factor", "heads that rotate in part are not supported");
  }
  for (const char* key : {"full_attention", "sliding_attention"}) {
    if (config.contains(key)) config.reject(key, "rotary embeddings that differ between layers are not supported");
  }
}

// The dimension that completes `rotations` turns over the original context (Peng et al. 2023, eq. 17 solved for d).
double dimension_of(double rotations, double dim, const RotaryScaling& scaling) {
  const double positions = static_cast<double>(scaling.original_max_positions);
  return dim * std::log(positions / (rotations * 2 * std::numbers::pi)) / (2 * std::log(scaling.theta));
}

at::Tensor llama3_frequencies(const at::Tensor& frequencies, const RotaryScaling& scaling) {
  const auto context = static_cast<double>(scaling.original_max_positions);
  const at::Tensor wavelength = 2 * std::numbers::pi / frequencies;
  const at::Tensor smooth =
      (context / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  const at::Tensor ramp = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies;
  const at::Tensor stretched =
      at::where(wavelength > context / scaling.low_freq_factor, frequencies / scaling.factor, ramp);
  return at::where(wavelength < context / scaling.high_freq_factor, frequencies, stretched);
}

at::Tensor yarn_frequencies(const at::Tensor& powers, int64_t dim, const RotaryScaling& scaling) {
  double low = dimension_of(scaling.beta_fast, static_cast<double>(dim), scaling);
  double high = dimension_of(scaling.beta_slow, static_cast<double>(dim), scaling);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  const at::Tensor kept = 1 - ((at::arange(dim / 2, at::kFloat) - low) / (high - low)).clamp(0, 1);
  return 1.0 / (scaling.factor * powers) * (1 - kept) + 1.0 / powers * kept;
}

}  // namespace

at::Tensor RotaryScaling::inverse_frequencies(int64_t dim) const {
  const at::Tensor exponents = at::arange(0, dim, 2, at::kLong).to(at::kFloat) / dim;
  const at::Tensor powers = at::pow(at::Scalar(theta), exponents);
  switch (kind) {
    case RotaryKind::kDefault:
      return 1.0 / powers;
    case RotaryKind::kLinear:
      return 1.0 / powers / factor;
    case RotaryKind::kLlama3:
      return llama3_frequencies(1.0 / powers, *this);
    case RotaryKind::kYarn:
      return yarn_frequencies(powers, dim, *this);
  }
  core::fail("unknown kind of rotary scaling");
}

core::ConfigReader rotary_section(core::ConfigReader& config) {
  const auto older = config.find<nlohmann::json>("rope_scaling");
  return config.section(older && !older->empty() ? "rope_scaling" : "rope_parameters");
}

RotaryScaling parse_rotary_scaling(core::ConfigReader& config, int64_t max_positions) {
  core::ConfigReader section = rotary_section(config);
  refuse_unsupported(config);
  refuse_unsupported(section);
  RotaryScaling scaling{.kind = parse_kind(section)};
  core::ConfigReader& theta_owner = section.contains("rope_theta") ? section : config;
  scaling.theta = positive(theta_owner, "rope_theta", theta_owner.get<double>("rope_theta", 10000));
  if (scaling.theta <= 1) theta_owner.reject("rope_theta", "must be above 1");

  constexpr const char* kOriginal = "original_max_position_embeddings";
  core::ConfigReader& original_owner = config.contains(kOriginal) ? config : section;
  scaling.original_max_positions = original_owner.get<int64_t>(kOriginal, max_positions);
  if (scaling.original_max_positions < 1) original_owner.reject(kOriginal, "must be positive");

  if (scaling.kind == RotaryKind::kLinear || scaling.kind == RotaryKind::kLlama3) {
    scaling.factor = require_positive(section, "factor");
  }
  if (scaling.kind == RotaryKind::kLlama3) {
    scaling.low_freq_factor = require_positive(section, "low_freq_factor");
    scaling.high_freq_factor = require_positive(section, "high_freq_factor");
    if (scaling.high_freq_factor <= scaling.low_freq_factor) {
      section.reject("high_freq_factor", "must be above low_freq_factor");
    }
  }
  if (scaling.kind == RotaryKind::kYarn) parse_yarn(section, max_positions, scaling);
  return scaling;
}

void write_rotary_scaling(const RotaryScaling& scaling, nlohmann::json& config) {
  config["rope_theta"] = scaling.theta;
  config["rope_scaling"] = nullptr;
  if (scaling.kind == RotaryKind::kDefault) return;
  nlohmann::json section{{"factor", scaling.factor}};
  for (const auto& [kind, name] : kKindNames) {
    if (kind == scaling.kind) section["rope_type"] = name;
  }
  if (scaling.kind != RotaryKind::kLinear) {
    section["original_max_position_embeddings"] = scaling.original_max_positions;
  }
  if (scaling.kind == RotaryKind::kLlama3) {
    section["low_freq_factor"] = scaling.low_freq_factor;
    section["high_freq_factor"] = scaling.high_freq_factor;
  }
  if (scaling.kind == RotaryKind::kYarn) {
    section["beta_fast"] = scaling.beta_fast;
    section["beta_slow"] = scaling.beta_slow;
    section["truncate"] = scaling.truncate;
    section["attention_factor"] = scaling.attention_factor;
  }
  config["rope_scaling"] = std::move(section);
}

}  // namespace distill::nn
