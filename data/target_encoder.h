// From a row of logits to what is stored of it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/philox.h"
#include "data/balanced_rounding.h"
#include "data/target_distribution.h"
#include "data/target_spec.h"
#include "data/trace.h"

namespace distill::data {

// The stream of random numbers that the targets of a document have: independent of the one that drew its tokens.
uint64_t target_stream(const TraceKey& key);

// The random numbers of the target at `position` of the completion: the same whoever computes it.
core::Philox target_draws(uint64_t seed, uint64_t stream, uint64_t position);
// Those that choose the tails of a window of positions that begins at `position`.
core::Philox tail_draws(uint64_t seed, uint64_t stream, uint64_t position);
// Those that round a target's weights when it is stored.
core::Philox rounding_draws(uint64_t seed, uint64_t stream, uint64_t position);

// Appends one position to `out`: the distribution softmax(logits / spec.temperature) over logits [vocab], reduced to
// what `spec` keeps, whose ids are below vocab. Ids of the exactly kept tokens come first, by descending probability
// (the lower id first where equal), then those that were drawn, ascending. Logits of -infinity have no mass. Throws
// Error if a logit is NaN or +infinity or none is finite.
void encode_target(std::span<const float> logits, const TargetSpec& spec, core::Philox& draws, SparseTargets& out);

// What a threshold target does not keep exactly: tokens of which those whose shares are rounded up (round_balanced())
// are kept, ascending ids, and what each of these then weighs.
struct SharedTail {
  float weight = 0;
  std::vector<SharedToken> tokens;  // at position 0
};

// The same, but leaves the choice of a threshold target's tail to the caller: only what is kept exactly is appended to
// `out`, the others to `tail`.
void encode_target(std::span<const float> logits, const TargetSpec& spec, core::Philox& draws, SparseTargets& out,
                   SharedTail& tail);

// The same for modes that need no draws (topk, full). Throws Error for the others.
void encode_target(std::span<const float> logits, const TargetSpec& spec, SparseTargets& out);

}  // namespace distill::data
