// From a row of logits to what is stored of it.
#pragma once

#include <span>

#include "data/target_distribution.h"
#include "data/target_spec.h"

namespace distill::data {

// Appends one position to `out`: the distribution softmax(logits / spec.temperature) over logits [vocab], reduced to
// what `spec` keeps. topk: the K most probable ids in descending order (the lower id first where equal) and the mass of
// the others; full: all ids in order. Logits of -infinity have no mass. Throws Error if a logit is NaN or +infinity or
// none is finite.
void encode_target(std::span<const float> logits, const TargetSpec& spec, SparseTargets& out);

}  // namespace distill::data
