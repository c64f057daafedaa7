// A scheduler's step as the tensors a model runs on.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <span>

#include "nn/causal_lm.h"
#include "nn/generation_scheduler.h"

namespace distill::nn {

struct StepBatch {
  PackedBatch tokens;
  CacheSlots slots;
  at::Tensor last_rows;  // [drawing] int64: rows of the hidden states that the next tokens are drawn from, for the
                         // items that reach the end of their sequence, in order
};

// `tokens_of` gives the tokens of a sequence, `length` of them.
StepBatch assemble_step(const StepPlan& plan, int64_t block_size,
                        const std::function<std::span<const int32_t>(const ScheduledSequence&)>& tokens_of);

}  // namespace distill::nn
