// What each way of storing the teacher's distributions supports soundly, as a table.
#pragma once

#include <string_view>

#include "data/target_spec.h"
#include "kernels/head_loss/head_loss.h"

namespace distill {

// "forward_kl", "reverse_kl", "jensen_shannon", "total_variation", "skew_forward_kl", "skew_reverse_kl".
std::string_view to_string(kernels::Divergence kind);
// Throws UsageError that lists the names.
kernels::Divergence parse_divergence(std::string_view name);

// What an objective may want to know about a stored distribution.
enum class TargetUse : uint8_t {
  kForwardKl,    // linear in the teacher's probabilities
  kDivergence,   // any other, which is not
  kTemperature,  // the distribution at another temperature than it was stored at
  kEntropy,      // its entropy, to weigh positions by
};

// Throws UsageError that says why, and what would do instead, unless targets stored like this support the use.
// `wanted` names it in the message. `carried_over`: from the teacher's tokens to those of a student with another
// tokenizer (data/token_alignment.h).
void require_support(const data::TargetSpec& spec, TargetUse use, std::string_view wanted, bool carried_over = false);

// The use that a divergence makes of its targets.
TargetUse use_of(kernels::Divergence kind);

}  // namespace distill
