// From a row of logits to what is stored of it.
#pragma once

#include <cstdint>
#include <span>

#include "core/philox.h"
#include "data/target_distribution.h"
#include "data/target_spec.h"
#include "data/trace.h"

namespace distill::data {

// The stream of random numbers that the targets of a document have: independent of the one that drew its tokens.
uint64_t target_stream(const TraceKey& key);

// The random numbers of the target at `position` of the completion: the same whoever computes it.
core::Philox target_draws(uint64_t seed, const TraceKey& key, uint64_t position);
// Those that round its weights when it is stored.
core::Philox rounding_draws(uint64_t seed, uint64_t stream, uint64_t position);

// Appends one position to `out`: the distribution softmax(logits / spec.temperature) over logits [vocab], reduced to
// what `spec` keeps, whose ids are below vocab. Ids of the exactly kept tokens come first, by descending probability
// (the lower id first where equal), then those that were drawn, ascending. Logits of -infinity have no mass. Throws
// Error if a logit is NaN or +infinity or none is finite.
void encode_target(std::span<const float> logits, const TargetSpec& spec, core::Philox& draws, SparseTargets& out);

// The same for modes that need no draws (topk, full). Throws Error for the others.
void encode_target(std::span<const float> logits, const TargetSpec& spec, SparseTargets& out);

}  // namespace distill::data
