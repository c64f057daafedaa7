#include "data/target_spec.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"

namespace distill::data {
namespace {

[[noreturn]] void reject(std::string_view text) {
  core::fail_usage(
      "targets '{}' are none of threshold:T (T below 1, such as threshold:0.03), threshold:K, sampled:N, hybrid:K+N, "
      "topk:K (K and N from 1 to 65535) or full",
      text);
}

int32_t parse_count(std::string_view digits, std::string_view text) {
  uint16_t count = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
  if (error != std::errc() || end != digits.data() + digits.size() || count == 0) reject(text);
  return count;
}

double parse_threshold(std::string_view digits, std::string_view text) {
  double threshold = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), threshold);
  if (error != std::errc() || end != digits.data() + digits.size()) reject(text);
  if (!(threshold >= 1e-4 && threshold < 1)) reject(text);
  return threshold;
}

}  // namespace

TargetSpec TargetSpec::parse(std::string_view text) {
  if (text == "full") return {.mode = TargetMode::kFull, .exact = 0};
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) reject(text);
  const std::string_view mode = text.substr(0, colon), counts = text.substr(colon + 1);
  if (mode == "topk") return {.mode = TargetMode::kTopk, .exact = parse_count(counts, text)};
  if (mode == "threshold" && counts.starts_with("0.")) {
    const double threshold = parse_threshold(counts, text);
    return {.mode = TargetMode::kThreshold,
            .exact = static_cast<int32_t>(std::ceil(1 / threshold)) + 1,
            .threshold = threshold};
  }
  if (mode == "threshold") return {.mode = TargetMode::kThreshold, .exact = parse_count(counts, text)};
  if (mode == "sampled") return {.mode = TargetMode::kSampled, .exact = 0, .draws = parse_count(counts, text)};
  const size_t plus = counts.find('+');
  if (mode != "hybrid" || plus == std::string_view::npos) reject(text);
  return {.mode = TargetMode::kHybrid,
          .exact = parse_count(counts.substr(0, plus), text),
          .draws = parse_count(counts.substr(plus + 1), text)};
}

void TargetSpec::set_keep(std::vector<int32_t> ids) {
  constexpr size_t kMost = 64;
  if (ids.size() > kMost) core::fail_usage("{} tokens to keep; at most {} can be", ids.size(), kMost);
  if (!ids.empty() && (mode == TargetMode::kFull || mode == TargetMode::kSampled)) {
    core::fail_usage("{} targets keep no chosen tokens: threshold, hybrid and topk do", to_string());
  }
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  keep = std::move(ids);
}

std::string TargetSpec::to_string() const {
  switch (mode) {
    case TargetMode::kFull:
      return "full";
    case TargetMode::kTopk:
      return fmt::format("topk:{}", exact);
    case TargetMode::kSampled:
      return fmt::format("sampled:{}", draws);
    case TargetMode::kHybrid:
      return fmt::format("hybrid:{}+{}", exact, draws);
    case TargetMode::kThreshold:
      break;
  }
  return threshold > 0 ? fmt::format("threshold:{}", threshold) : fmt::format("threshold:{}", exact);
}

}  // namespace distill::data
