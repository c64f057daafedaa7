// What a capture does with each row of a teacher's logits: keep the target, and measure what that loses.
#pragma once

#include <cstdint>
#include <span>

#include "data/target_distribution.h"
#include "data/trace.h"

namespace distill::data {

// Appends the target of `position` (0 for the first) of the completion `key` to `out` (target_encoder.h), with the
// draws that belong to it, and every kFidelityStride-th time adds to out.fidelity how well it stands for all of
// logits [vocab], rounded as a shard will store it. Positions come in order. Throws Error if the logits are not a
// distribution.
void capture_target(std::span<const float> logits, const TraceProvenance& provenance, const TraceKey& key,
                    uint64_t position, SparseTargets& out);

}  // namespace distill::data
