// What of the teacher's distribution is kept at each position, as given to --targets.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace distill::data {

enum class TargetMode : uint8_t {
  kTopk,  // the K most probable tokens and the mass of all others. Biased: what lies outside is lost.
  kFull,  // every token, its log-probability as fp16. For tests and tiny vocabularies.
};

struct TargetSpec {
  TargetMode mode = TargetMode::kTopk;
  int32_t exact = 64;  // K
  // The stored distribution is softmax(logits / temperature), whatever temperature the tokens were sampled at.
  double temperature = 1.0;

  // "topk:64" or "full". Throws UsageError that lists the modes.
  static TargetSpec parse(std::string_view text);
  // What parse() reads back.
  std::string to_string() const;

  bool operator==(const TargetSpec&) const = default;
};

}  // namespace distill::data
