#include "data/hidden_states.h"

#include <c10/util/Float8_e4m3fn.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <functional>

#include "core/config.h"
#include "core/error.h"
#include "core/names.h"
#include "data/little_endian.h"
#include "kernels/fp8/e4m3.h"
#include "kernels/multiversion.h"

namespace distill::data {
namespace {

using kernels::Bf16;
using kernels::E4m3;

constexpr size_t kScaleBlock = 128;  // values that share a scale
constexpr float kLargest = 3e38F;    // that every form holds
constexpr std::array<std::string_view, 2> kTypeNames{"bf16", "fp8"};
constexpr int64_t kMaxWidth = int64_t{1} << 20, kMaxLayers = 4096;

void encode_fp8(std::span<const float> state, std::vector<std::byte>& out) {
  std::vector<float> scales;
  for (size_t first = 0; first < state.size(); first += kScaleBlock) {
    float largest = 0;
    for (const float value : state.subspan(first, std::min(kScaleBlock, state.size() - first))) {
      largest = std::max(largest, std::abs(value));
    }
    const float scale = largest / kernels::kLargestE4m3;
    scales.push_back(std::isnormal(scale) ? scale : 0);
  }
  append(out, std::span<const float>(scales));
  for (size_t i = 0; i < state.size(); ++i) {
    const float scale = scales[i / kScaleBlock];
    append_value(out, c10::detail::fp8e4m3fn_from_fp32_value(scale > 0 ? state[i] / scale : 0));
  }
}

DISTILL_MULTIVERSION void widen_bf16(const std::byte* from, size_t count, float* to) {
  for (size_t i = 0; i < count; ++i) to[i] = kernels::to_float(load<Bf16>(from, i));
}

DISTILL_MULTIVERSION void widen_fp8(const std::byte* codes, float scale, size_t count, float* to) {
  for (size_t i = 0; i < count; ++i) to[i] = kernels::to_float(load<E4m3>(codes, i)) * scale;
}

}  // namespace

std::string_view to_string(HiddenType type) {
  return kTypeNames[static_cast<size_t>(type)];
}

HiddenType parse_hidden_type(std::string_view name) {
  return core::parse_name<HiddenType>(kTypeNames, name);
}

size_t HiddenStatesSpec::scales() const {
  return type == HiddenType::kFp8 ? (static_cast<size_t>(width) + kScaleBlock - 1) / kScaleBlock : 0;
}

size_t HiddenStatesSpec::state_bytes() const {
  return 4 * scales() + static_cast<size_t>(width) * (type == HiddenType::kFp8 ? 1 : 2);
}

std::optional<size_t> HiddenStatesSpec::index_of(int64_t layer) const {
  const auto found = std::ranges::find(layers, layer);
  if (found == layers.end()) return std::nullopt;
  return static_cast<size_t>(found - layers.begin());
}

void HiddenStatesSpec::encode(std::span<const float> states, std::vector<std::byte>& out) const {
  const auto values = static_cast<size_t>(width);
  core::check(states.size() == layers.size() * values, "{} values for {} hidden states of {}", states.size(),
              layers.size(), values);
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto state = states.subspan(i * values, values);
    core::check(std::ranges::all_of(state, [](float value) { return std::abs(value) <= kLargest; }),
                "the hidden state of layer {} has a value that is not a number or too large", layers[i]);
    if (type == HiddenType::kFp8) {
      encode_fp8(state, out);
    } else {
      for (const float value : state) append_value(out, kernels::from_float<Bf16>(value));
    }
  }
}

void HiddenStatesSpec::decode(std::span<const std::byte> position, size_t index, std::span<float> out) const {
  const auto values = static_cast<size_t>(width);
  core::check(position.size() == position_bytes() && index < layers.size() && out.size() == values,
              "{} bytes for {} hidden states of {}", position.size(), layers.size(), values);
  const std::byte* const state = position.data() + index * state_bytes();
  if (type == HiddenType::kBf16) {
    widen_bf16(state, values, out.data());
  } else {
    const std::byte* const codes = state + 4 * scales();
    for (size_t first = 0; first < values; first += kScaleBlock) {
      widen_fp8(codes + first, load<float>(state, first / kScaleBlock), std::min(kScaleBlock, values - first),
                out.data() + first);
    }
  }
  core::check(std::ranges::all_of(out, [](float value) { return std::isfinite(value); }),
              "the hidden state of layer {} has a value that is not a number", layers[index]);
}

nlohmann::json HiddenStatesSpec::to_json() const {
  return {{"layers", layers}, {"last_layer", last_layer}, {"width", width}, {"dtype", to_string(type)}};
}

HiddenStatesSpec HiddenStatesSpec::from_json(const nlohmann::json& json, const std::string& location) {
  core::ConfigReader reader(json, location);
  HiddenStatesSpec spec;
  spec.layers = reader.require<std::vector<int64_t>>("layers");
  spec.last_layer = reader.require<int64_t>("last_layer");
  spec.width = reader.require<int64_t>("width");
  if (spec.last_layer < 0 || spec.last_layer > kMaxLayers) reader.reject("last_layer", "is out of range");
  if (spec.width < 1 || spec.width > kMaxWidth) reader.reject("width", "is out of range");
  const bool ascending = std::ranges::adjacent_find(spec.layers, std::greater_equal()) == spec.layers.end();
  if (!ascending || spec.layers.empty() || spec.layers.front() < 0 || spec.layers.back() > spec.last_layer) {
    reader.reject("layers", "is not an ascending list of layers");
  }
  const auto type = reader.require<std::string>("dtype");
  try {
    spec.type = parse_hidden_type(type);
  } catch (const core::UsageError& error) {
    reader.reject("dtype", error.what());
  }
  reader.finish();
  return spec;
}

std::optional<int64_t> parse_layer(std::string_view word) {
  if (word == "last") return kLastLayer;
  int64_t layer = -1;
  const char* const end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, layer);
  if (error != std::errc() || stop != end || layer < 0) return std::nullopt;
  return layer;
}

std::vector<int64_t> parse_layers(std::string_view text, int64_t last_layer) {
  std::vector<int64_t> layers;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view word = text.substr(begin, end - begin);
    const std::optional<int64_t> layer = parse_layer(word);
    if (!layer || *layer > last_layer) {
      core::fail_usage("hidden states: '{}' is no layer of this model: 0 (the embedding) to {}, or last", word,
                       last_layer);
    }
    layers.push_back(*layer == kLastLayer ? last_layer : *layer);
    begin = end + 1;
  }
  std::ranges::sort(layers);
  if (const auto twice = std::ranges::adjacent_find(layers); twice != layers.end()) {
    core::fail_usage("hidden states: layer {} is named twice", *twice);
  }
  return layers;
}

}  // namespace distill::data
