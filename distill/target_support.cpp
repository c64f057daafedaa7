#include "distill/target_support.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/names.h"

namespace distill {
namespace {

constexpr std::array<std::string_view, 6> kNames{"forward_kl",      "reverse_kl",      "jensen_shannon",
                                                 "total_variation", "skew_forward_kl", "skew_reverse_kl"};

// How much of a distribution is there: all of it, its most probable tokens, random ones that estimate it, or what any
// of these says of another tokenizer's tokens.
enum class Stored : uint8_t { kWhole, kTruncated, kEstimated, kCarriedOver };

Stored stored_by(data::TargetMode mode, bool carried_over) {
  if (carried_over) return Stored::kCarriedOver;
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
    Entry{Stored::kCarriedOver, TargetUse::kForwardKl, ""},
    Entry{Stored::kCarriedOver, TargetUse::kDivergence,
          "what the teacher thinks of a token of the student's that it would write in several pieces is known for the "
          "written text alone"},
    Entry{Stored::kCarriedOver, TargetUse::kTemperature,
          "probabilities of pieces multiply to those of text at temperature 1 only"},
    Entry{Stored::kCarriedOver, TargetUse::kEntropy,
          "inside a token of the teacher's the target is the written token, whatever the teacher's entropy"},
};

std::string_view alternatives(Stored stored, TargetUse use) {
  if (stored == Stored::kCarriedOver) {
    return "train with divergence: forward_kl, temperatures of 1 and no entropy_power, or take a student with the "
           "teacher's tokenizer";
  }
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
  return core::parse_name<kernels::Divergence>(kNames, name);
}

TargetUse use_of(kernels::Divergence kind) {
  return kind == kernels::Divergence::kForwardKl ? TargetUse::kForwardKl : TargetUse::kDivergence;
}

void require_support(const data::TargetSpec& spec, TargetUse use, std::string_view wanted, bool carried_over) {
  const Stored stored = stored_by(spec.mode, carried_over);
  const auto* const entry =
      std::ranges::find_if(kTable, [&](const Entry& e) { return e.stored == stored && e.use == use; });
  if (entry->unsound.empty()) return;
  core::fail_usage("objective: {} is unsound on targets {}{}: {}. Instead: {}", wanted, spec.to_string(),
                   carried_over ? " of another tokenizer" : "", entry->unsound, alternatives(stored, use));
}

}  // namespace distill
