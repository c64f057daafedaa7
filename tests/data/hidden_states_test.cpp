#include "data/hidden_states.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/data/expect_error.h"
#include "tests/data/sample_traces.h"

namespace distill::data {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// Values of very different sizes, as hidden states have them.
std::vector<float> sample_states(size_t count) {
  core::Philox random(3, 0, 0);
  std::vector<float> states;
  for (size_t i = 0; i < count; ++i) {
    const double size = random.next_below(40) == 0 ? 3000 : std::exp(-6 * random.next_double());
    states.push_back(static_cast<float>(size * random.next_normal()));
  }
  return states;
}

std::vector<float> decoded(const HiddenStatesSpec& spec, std::span<const std::byte> stored) {
  std::vector<float> result(spec.layers.size() * static_cast<size_t>(spec.width));
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    spec.decode(stored, i,
                std::span(result).subspan(i * static_cast<size_t>(spec.width), static_cast<size_t>(spec.width)));
  }
  return result;
}

TEST(HiddenStates, AreStoredWithinTheBoundsOfTheirType) {
  for (const auto type : {HiddenType::kBf16, HiddenType::kFp8}) {
    for (const int64_t width : {1, 3, 127, 128, 129, 600}) {
      const HiddenStatesSpec spec{.layers = {0, 5}, .last_layer = 5, .width = width, .type = type};
      const auto states = sample_states(2 * static_cast<size_t>(width));
      std::vector<std::byte> stored;
      spec.encode(states, stored);
      ASSERT_EQ(stored.size(), spec.position_bytes());
      const auto blocks = static_cast<size_t>((width + 127) / 128), values = static_cast<size_t>(width);
      EXPECT_EQ(spec.state_bytes(), type == HiddenType::kBf16 ? 2 * values : 4 * blocks + values);
      const auto back = decoded(spec, stored);
      for (size_t i = 0; i < states.size(); ++i) {
        const size_t begin = i / values * values + i % values / 128 * 128;
        const size_t end = std::min(begin + 128, (i / values + 1) * values);
        float largest = 0;
        for (size_t j = begin; j < end; ++j) largest = std::max(largest, std::abs(states[j]));
        const float bound = type == HiddenType::kBf16 ? std::abs(states[i]) / 256
                                                      : std::max(std::abs(states[i]) / 16, largest / 458752);
        EXPECT_LE(std::abs(back[i] - states[i]), bound * 1.000001F) << to_string(type) << ' ' << width << ' ' << i;
      }
    }
  }
}

TEST(HiddenStates, OfZerosAndTheLeastNumbersAreZeros) {
  const HiddenStatesSpec spec{.layers = {0}, .last_layer = 1, .width = 130, .type = HiddenType::kFp8};
  std::vector<float> states(130, 0.0F);
  states[129] = std::numeric_limits<float>::denorm_min();
  std::vector<std::byte> stored;
  spec.encode(states, stored);
  EXPECT_EQ(decoded(spec, stored), std::vector<float>(130, 0.0F));
}

TEST(HiddenStates, ThatAreNoNumbersAreRefusedOnBothWays) {
  for (const auto type : {HiddenType::kBf16, HiddenType::kFp8}) {
    const HiddenStatesSpec spec{.layers = {2, 4}, .last_layer = 4, .width = 2, .type = type};
    std::vector<std::byte> stored;
    for (const float bad : {NAN, INFINITY, -INFINITY, 3.1e38F}) {
      EXPECT_THAT(error_of([&] { spec.encode(std::vector{0.0F, 1.0F, 2.0F, bad}, stored); }), HasSubstr("layer 4"));
    }
    EXPECT_THAT(error_of([&] { spec.encode(std::vector{0.0F, 1.0F}, stored); }), HasSubstr("2 values"));
    stored.assign(spec.position_bytes(), std::byte{0});
    stored.back() = stored[stored.size() - 2] = std::byte{0x7F};
    const auto scale = std::bit_cast<std::array<std::byte, 4>>(1.0F);
    if (type == HiddenType::kFp8) std::ranges::copy(scale, stored.begin() + static_cast<int64_t>(spec.state_bytes()));
    if (type == HiddenType::kBf16) stored[stored.size() - 2] = std::byte{0x80};
    EXPECT_THAT(error_of([&] { decoded(spec, stored); }), HasSubstr("layer 4 has a value that is not a number"));
    stored.pop_back();
    EXPECT_THAT(error_of([&] { decoded(spec, stored); }), HasSubstr("bytes for 2 hidden states of 2"));
  }
}

TEST(HiddenStates, AreOfLayersNamedAsInTransformers) {
  EXPECT_THAT(parse_layers("last", 30), ElementsAre(30));
  EXPECT_THAT(parse_layers("last,12,0", 30), ElementsAre(0, 12, 30));
  for (const char* wrong : {"", "31", "-1", "first", "1,,2", "1, 2", "12x", "99999999999999999999"}) {
    EXPECT_THAT(error_of([&] { parse_layers(wrong, 30); }), HasSubstr("0 (the embedding) to 30, or last")) << wrong;
  }
  EXPECT_THAT(error_of([] { parse_layers("last,30", 30); }), HasSubstr("layer 30 is named twice"));
}

TEST(HiddenStates, AreDescribedInTheProvenance) {
  const TraceProvenance provenance = with_hidden_states(sample_provenance(), HiddenType::kFp8, 300);
  const nlohmann::json json = provenance.to_json();
  EXPECT_EQ(json["hidden_states"],
            nlohmann::json({{"layers", {0, 2, 3}}, {"last_layer", 3}, {"width", 300}, {"dtype", "fp8"}}));
  EXPECT_EQ(TraceProvenance::from_json(json, "file").hidden_states, provenance.hidden_states);
  EXPECT_EQ(provenance.hidden_bytes(7), 7U * 3 * (3 * 4 + 300));
  EXPECT_FALSE(sample_provenance().to_json().contains("hidden_states"));
  EXPECT_EQ(sample_provenance().hidden_bytes(7), 0U);
  const auto error_with = [&](const char* key, const nlohmann::json& value) {
    nlohmann::json changed = json;
    changed["hidden_states"][key] = value;
    return error_of([&] { TraceProvenance::from_json(changed, "file"); });
  };
  EXPECT_THAT(error_with("width", 0), AllOf(HasSubstr("file: hidden_states"), HasSubstr("width")));
  EXPECT_THAT(error_with("width", int64_t{1} << 40), HasSubstr("width"));
  EXPECT_THAT(error_with("last_layer", 2), HasSubstr("layers"));
  EXPECT_THAT(error_with("last_layer", int64_t{1} << 40), HasSubstr("last_layer"));
  EXPECT_THAT(error_with("layers", nlohmann::json::array()), HasSubstr("layers"));
  EXPECT_THAT(error_with("layers", {0, 2, 2}), HasSubstr("layers"));
  EXPECT_THAT(error_with("layers", {-1, 2}), HasSubstr("layers"));
  EXPECT_THAT(error_with("dtype", "fp4"), HasSubstr("neither bf16 nor fp8"));
  EXPECT_THAT(error_with("scale", 1), HasSubstr("scale"));
}

}  // namespace
}  // namespace distill::data
