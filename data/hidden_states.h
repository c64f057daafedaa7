// A teacher's hidden states as they lie beside the targets of a trace: of which layers, and as what numbers. Layout in
// docs/trace-format.md, "Hidden states".
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace distill::data {

enum class HiddenType : uint8_t {
  kBf16,  // rounded to nearest: off by at most 1/256 of each value
  kFp8,   // e4m3 with one fp32 scale per 128 values, whose largest becomes 448: off by at most 1/16 of each value, or
          // 1/458752 of the largest of the 128, whichever is more
};
// "bf16", "fp8".
std::string_view to_string(HiddenType type);
// Throws UsageError.
HiddenType parse_hidden_type(std::string_view name);

// Layers are numbered as transformers numbers `hidden_states`: 0 is the embedding, i what layer i gives, and the last
// one what the head sees, behind the final norm.
struct HiddenStatesSpec {
  std::vector<int64_t> layers;  // ascending
  int64_t last_layer = 0;       // how many layers the model has
  int64_t width = 0;            // of each state
  HiddenType type = HiddenType::kBf16;

  // fp32 scales before the values of a state: none in bf16.
  size_t scales() const;
  // Bytes of one state, and of the states of all layers at one position.
  size_t state_bytes() const;
  size_t position_bytes() const { return layers.size() * state_bytes(); }
  // Where among `layers` one is; nothing if it is not there.
  std::optional<size_t> index_of(int64_t layer) const;

  // Appends the states [layers, width] of one position. Throws Error naming the layer of a value that is not a number
  // or beyond 3e38.
  void encode(std::span<const float> states, std::vector<std::byte>& out) const;
  // The state of layers[index] from the bytes of a position, into out [width]. Throws Error if a value is not a number.
  void decode(std::span<const std::byte> position, size_t index, std::span<float> out) const;

  nlohmann::json to_json() const;
  // Throws UsageError naming key and defect.
  static HiddenStatesSpec from_json(const nlohmann::json& json, const std::string& location);

  bool operator==(const HiddenStatesSpec&) const = default;
};

// The last layer of a model that is not at hand.
inline constexpr int64_t kLastLayer = -1;

// "last" (kLastLayer), or the number of a layer; nothing if `word` is neither.
std::optional<int64_t> parse_layer(std::string_view word);

// The layers that "0,12,last" names of a model with `last_layer` layers, ascending. Throws UsageError for others, and
// for one that is named twice.
std::vector<int64_t> parse_layers(std::string_view text, int64_t last_layer);

}  // namespace distill::data
