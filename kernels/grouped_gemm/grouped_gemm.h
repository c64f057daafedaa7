// Gated MLPs of many experts on the tokens routed to each: the feed-forward half of a mixture-of-experts layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "kernels/fp8/stored_weight.h"

namespace distill::kernels {

// The MLPs of one layer, used as stored. Routed experts first, then experts that every token goes to (shared experts; a
// dense MLP is one such expert alone). Each expert's intermediate size may be its own, and so may the types of its
// weights, but gate and up are of one type.
struct ExpertWeights {
  std::vector<at::Tensor>
      values;  // gate, up [intermediate, hidden], down [hidden, intermediate] of each expert in turn
  std::vector<at::Tensor> scales;  // of each of `values`; undefined where that is not FP8
  int64_t routed = 0;              // the first so many are routed to

  int64_t count() const { return static_cast<int64_t>(values.size()) / 3; }
  void add(const StoredWeight& gate, const StoredWeight& up, const StoredWeight& down);
};

// Throws c10::Error unless the weights fit together and take tokens of size `hidden`.
void check_experts(const ExpertWeights& weights, int64_t hidden);

// y = residual + sum over a token's experts of gate * down(silu(gate_proj x) * up_proj x), shared experts with gate 1.
//   x         [tokens, hidden] fp32 or bf16, contiguous
//   experts   [tokens, k] int32 with values in [0, routed), each at most once per token; gates [tokens, k] fp32
//   residual  [tokens, hidden] of x's dtype, or undefined
// Returns x's dtype. Tokens are grouped by expert, so that each expert's weights are read once; the SwiGLU between the
// projections is fused into the first. A token's experts are summed in fp32, by ascending number: a token's result
// never depends on the other tokens. The weights must have passed check_experts.
at::Tensor grouped_mlp(const at::Tensor& x, const at::Tensor& experts, const at::Tensor& gates,
                       const ExpertWeights& weights, const at::Tensor& residual = {});

}  // namespace distill::kernels
