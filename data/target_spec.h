// What of the teacher's distribution is kept at each position, as given to --targets.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace distill::data {

// docs/targets.md defines the modes and proves what is said of them. Of the unbiased ones, the expectation of each
// stored weight over the draws is the token's probability, and the weights always sum to 1.
enum class TargetMode : uint8_t {
  kTopk,       // the K most probable tokens and the mass of all others. Biased: what lies outside is lost.
  kFull,       // every token, its log-probability as fp16. For tests and tiny vocabularies.
  kSampled,    // N draws with replacement, as a multiset. Unbiased.
  kHybrid,     // the K most probable tokens exactly, N draws with replacement from the others. Unbiased.
  kThreshold,  // Tokens above a threshold exactly, others by balanced sampling. Unbiased, least variance: of all ways
               // to keep K tokens at each position, or, with a threshold T given, as many over all positions together.
};

// The least gradient error per byte of what bench/targets_bench measures (docs/targets.md).
inline constexpr const char* kDefaultTargets = "threshold:0.04";

struct TargetSpec {
  TargetMode mode = TargetMode::kTopk;
  int32_t exact = 64;    // K
  int32_t draws = 0;     // N
  double threshold = 0;  // T, below 1: then `exact` is the most tokens that a position can have
  // The stored distribution is softmax(logits / temperature), whatever temperature the tokens were sampled at.
  double temperature = 1.0;
  // Ids that are kept exactly whatever their probability (ends of answers, marks of reasoning or tools), ascending. The
  // mode does with all others what it would do without these.
  std::vector<int32_t> keep{};

  // "topk:64", "full", "sampled:50", "hybrid:8+8", "threshold:16" (K) or "threshold:0.03" (T). Throws UsageError that
  // lists the modes.
  static TargetSpec parse(std::string_view text);
  // Throws UsageError unless `ids` may be kept: with threshold, hybrid and topk, at most 64. Sorts them.
  void set_keep(std::vector<int32_t> ids);

  // What parse() reads back: without temperature and `keep`.
  std::string to_string() const;

  // Whether what is stored depends on random draws; then it is an unbiased estimate.
  bool random() const {
    return mode == TargetMode::kSampled || mode == TargetMode::kHybrid || mode == TargetMode::kThreshold;
  }

  bool operator==(const TargetSpec&) const = default;
};

}  // namespace distill::data
