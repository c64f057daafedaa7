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
  // [drawing] int64: rows of the hidden states that next tokens are drawn from, in the order of the items that reach
  // the end of their sequence: of its last token and of each draft behind it.
  at::Tensor last_rows;
};

// `tokens_of` gives the tokens of a sequence, `length` of them, and its drafts behind them.
StepBatch assemble_step(const StepPlan& plan, int64_t block_size,
                        const std::function<std::span<const int32_t>(const ScheduledSequence&)>& tokens_of);

}  // namespace distill::nn
