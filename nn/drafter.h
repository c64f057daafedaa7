// Guesses the tokens that a model is about to draw, much faster than the model draws them, so that it can check several
// in one pass (Leviathan et al. 2023).
#pragma once

#include <ATen/core/Tensor.h>

#include "nn/causal_lm.h"

namespace distill::nn {

// What a multi-token-prediction module is to the generation engine. T tokens, E hidden size.
class Drafter {
 public:
  virtual ~Drafter() = default;

  // Row t of `batch` is the token that follows position t of its sequence, and `hidden` [T, E] is what the model
  // returned for position t, or this function itself where it goes on from its own guess. Returns hidden states [T, E]
  // from which the token after that is guessed. Keeps entries of its own in the model's cache, at `slots`.
  virtual at::Tensor draft_forward(const PackedBatch& batch, const at::Tensor& hidden, KvCache& cache,
                                   const CacheSlots& slots) = 0;

  // Logits [T, vocab] fp32 of the guesses.
  virtual at::Tensor draft_logits(const at::Tensor& hidden) = 0;
};

}  // namespace distill::nn
