#include "data/target_spec.h"

#include <charconv>

#include "core/error.h"

namespace distill::data {
namespace {

[[noreturn]] void reject(std::string_view text) {
  core::fail_usage("targets '{}' are neither topk:K (K from 1 to 65535, such as topk:64) nor full", text);
}

int32_t parse_count(std::string_view digits, std::string_view text) {
  uint16_t count = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
  if (error != std::errc() || end != digits.data() + digits.size() || count == 0) reject(text);
  return count;
}

}  // namespace

TargetSpec TargetSpec::parse(std::string_view text) {
  constexpr std::string_view kTopk = "topk:";
  if (text == "full") return {.mode = TargetMode::kFull, .exact = 0};
  if (text.starts_with(kTopk))
    return {.mode = TargetMode::kTopk, .exact = parse_count(text.substr(kTopk.size()), text)};
  reject(text);
}

std::string TargetSpec::to_string() const {
  return mode == TargetMode::kFull ? "full" : fmt::format("topk:{}", exact);
}

}  // namespace distill::data
