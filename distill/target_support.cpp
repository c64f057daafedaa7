#include "distill/target_support.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/error.h"

namespace distill {
namespace {

constexpr std::array<std::string_view, 6> kNames{"forward_kl",      "reverse_kl",      "jensen_shannon",
                                                 "total_variation", "skew_forward_kl", "skew_reverse_kl"};

// How much of a distribution is there: all of it, its most probable tokens, or random ones that estimate it.
enum class Stored : uint8_t { kWhole, kTruncated, kEstimated };

Stored stored_by(data::TargetMode mode) {
  if (mode == data::TargetMode::kFull) return Stored::kWhole;
  return mode == data::TargetMode::kTopk ? Stored::kTruncated : Stored::kEstimated;
}

struct Entry {
  Stored stored;
  TargetUse use;
  std::string_view unsound;  // why; empty where it is sound
};

// Forward KL: of truncated targets the divergence after merging the tail into a ghost token, a lower bound; of
// estimates unbiased, being linear in the stored weights.
constexpr std::array kTable{
    Entry{Stored::kWhole, TargetUse::kForwardKl, ""},
    Entry{Stored::kWhole, TargetUse::kDivergence, ""},
    Entry{Stored::kWhole, TargetUse::kTemperature, ""},
    Entry{Stored::kWhole, TargetUse::kEntropy, ""},
    Entry{Stored::kTruncated, TargetUse::kForwardKl, ""},
    Entry{Stored::kTruncated, TargetUse::kDivergence,
          "they do not say which of the other tokens the teacher would never write, so the student is not punished for "
          "writing them"},
    Entry{Stored::kTruncated, TargetUse::kTemperature,
          "the mass of the tokens that are not stored is known at one temperature only"},
    Entry{Stored::kTruncated, TargetUse::kEntropy, ""},
    Entry{Stored::kEstimated, TargetUse::kForwardKl, ""},
    Entry{Stored::kEstimated, TargetUse::kDivergence,
          "it is not linear in the teacher's probabilities, so random estimates of them give a biased gradient"},
    Entry{Stored::kEstimated, TargetUse::kTemperature,
          "a power of a random estimate is no estimate of the power, so the targets would be biased"},
    Entry{Stored::kEstimated, TargetUse::kEntropy,
          "the entropy of a random estimate goes with its errors, so the weighted gradient is biased"},
};

std::string_view alternatives(TargetUse use) {
  switch (use) {
    case TargetUse::kDivergence:
    case TargetUse::kForwardKl:
      return "train with divergence: forward_kl, capture the traces with --targets full, or let the teacher score the "
             "tokens during training (distill train --online)";
    case TargetUse::kTemperature:
      return "leave out teacher_temperature, capture the traces with --targets full, or let the teacher score the "
             "tokens during training (distill train --online)";
    case TargetUse::kEntropy:
      break;
  }
  return "leave out entropy_power, capture the traces with --targets topk:K or full, or let the teacher score the "
         "tokens during training (distill train --online)";
}

}  // namespace

std::string_view to_string(kernels::Divergence kind) {
  return kNames[static_cast<size_t>(kind)];
}

kernels::Divergence parse_divergence(std::string_view name) {
  const auto found = std::ranges::find(kNames, name);
  if (found == kNames.end()) core::fail_usage("'{}' is none of {}", name, fmt::join(kNames, ", "));
  return static_cast<kernels::Divergence>(found - kNames.begin());
}

TargetUse use_of(kernels::Divergence kind) {
  return kind == kernels::Divergence::kForwardKl ? TargetUse::kForwardKl : TargetUse::kDivergence;
}

void require_support(const data::TargetSpec& spec, TargetUse use, std::string_view wanted) {
  const Stored stored = stored_by(spec.mode);
  const auto* const entry =
      std::ranges::find_if(kTable, [&](const Entry& e) { return e.stored == stored && e.use == use; });
  if (entry->unsound.empty()) return;
  core::fail_usage("objective: {} is unsound on targets {}: {}. Instead: {}", wanted, spec.to_string(), entry->unsound,
                   alternatives(use));
}

}  // namespace distill
