#include "nn/rotary_scaling.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"

// Equality with transformers' frequencies is checked end to end by tests/parity/logits_parity.py.

namespace distill::nn {
namespace {

using nlohmann::json;
using testing::HasSubstr;

RotaryScaling parse(const json& config) {
  core::ConfigReader reader(config, "config.json");
  return parse_rotary_scaling(reader, 4096);
}

std::string error_of(const json& config) {
  try {
    parse(config);
    return {};
  } catch (const core::Error& error) {
    return error.what();
  }
}

const json kLlama3{{"rope_type", "llama3"},
                   {"factor", 8.0},
                   {"low_freq_factor", 1.0},
                   {"high_freq_factor", 4.0},
                   {"original_max_position_embeddings", 512}};

TEST(RotaryScaling, ReadsBothDialectsAlike) {
  json merged = kLlama3;
  merged["rope_theta"] = 5e5;
  for (const json& config : {json{{"rope_theta", 5e5}, {"rope_scaling", kLlama3}}, json{{"rope_parameters", merged}},
                             json{{"rope_scaling", nullptr}, {"rope_parameters", merged}}}) {
    const RotaryScaling scaling = parse(config);
    EXPECT_EQ(scaling.kind, RotaryKind::kLlama3) << config;
    EXPECT_EQ(scaling.theta, 5e5) << config;
    EXPECT_EQ(scaling.factor, 8) << config;
    EXPECT_EQ(scaling.original_max_positions, 512) << config;
  }
}

TEST(RotaryScaling, DefaultsToTheOriginalFrequencies) {
  const RotaryScaling scaling = parse(json::object());
  EXPECT_EQ(scaling.kind, RotaryKind::kDefault);
  const at::Tensor frequencies = scaling.inverse_frequencies(8);
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(frequencies[i].item<double>(), std::pow(10000, -static_cast<double>(i) / 4), 1e-7) << i;
  }
}

TEST(RotaryScaling, Llama3KeepsFastDimensionsAndDividesSlowOnes) {
  const at::Tensor plain = parse({{"rope_theta", 5e5}}).inverse_frequencies(64);
  const at::Tensor scaled = parse({{"rope_theta", 5e5}, {"rope_scaling", kLlama3}}).inverse_frequencies(64);
  EXPECT_EQ(scaled[0].item<float>(), plain[0].item<float>());
  EXPECT_FLOAT_EQ(scaled[31].item<float>(), plain[31].item<float>() / 8);
  const at::Tensor ratio = plain / scaled;
  EXPECT_TRUE((ratio.diff() >= -1e-5).all().item<bool>());  // the ramp between rises
}

TEST(RotaryScaling, YarnSharpensAttentionByItsFactor) {
  const json yarn{{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}};
  const RotaryScaling scaling = parse({{"rope_scaling", yarn}});
  EXPECT_DOUBLE_EQ(scaling.attention_factor, 0.1 * std::log(4.0) + 1);
  json with_mscale = yarn;
  with_mscale.update({{"mscale", 0.5}, {"mscale_all_dim", 1.0}});
  EXPECT_DOUBLE_EQ(parse({{"rope_scaling", with_mscale}}).attention_factor,
                   (0.05 * std::log(4.0) + 1) / (0.1 * std::log(4.0) + 1));
  json given = yarn;
  given["attention_factor"] = 1.5;
  EXPECT_EQ(parse({{"rope_scaling", given}}).attention_factor, 1.5);
}

TEST(RotaryScaling, IsWrittenAsItIsRead) {
  for (const json& section :
       {json(nullptr), json{{"type", "linear"}, {"factor", 2.5}}, kLlama3,
        json{
            {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}, {"beta_fast", 16.0}}}) {
    const RotaryScaling scaling = parse({{"rope_theta", 2e4}, {"rope_scaling", section}});
    json written;
    write_rotary_scaling(scaling, written);
    const RotaryScaling again = parse(written);
    EXPECT_EQ(again.kind, scaling.kind) << section;
    EXPECT_TRUE(at::equal(again.inverse_frequencies(32), scaling.inverse_frequencies(32))) << section;
    EXPECT_EQ(again.attention_factor, scaling.attention_factor) << section;
  }
}

TEST(RotaryScaling, NamesTheKeyItRefuses) {
  EXPECT_THAT(error_of({{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}}),
              HasSubstr("rope_scaling.type: \"dynamic\" is not supported"));
  EXPECT_THAT(error_of({{"rope_scaling", {{"type", "linear"}}}}), HasSubstr("rope_scaling.factor: is missing"));
  EXPECT_THAT(error_of({{"rope_scaling", {{"type", "linear"}, {"factor", -1.0}}}}), HasSubstr("rope_scaling.factor"));
  EXPECT_THAT(error_of({{"rope_theta", 0}}), HasSubstr("rope_theta"));
  EXPECT_THAT(error_of({{"rope_theta", "fast"}}), HasSubstr("rope_theta: expected a number"));
  EXPECT_THAT(error_of({{"partial_rotary_factor", 0.5}}), HasSubstr("partial_rotary_factor"));
  EXPECT_THAT(error_of({{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}}),
              HasSubstr("rope_parameters.full_attention"));
  json reversed = kLlama3;
  reversed["high_freq_factor"] = 0.5;
  EXPECT_THAT(error_of({{"rope_scaling", reversed}}), HasSubstr("high_freq_factor: must be above low_freq_factor"));
}

}  // namespace
}  // namespace distill::nn
