// The second half of a decoder layer: a gated MLP, or a mixture of experts of which each token uses a few, beside
// shared ones that all tokens use (DeepSeek-V2 §2.2, DeepSeek-V3 §2.1.2).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/fp8/stored_weight.h"
#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/moe_router/moe_router.h"
#include "teacher/deepseek_config.h"
#include "teacher/deepseek_weights.h"

namespace distill::teacher {

class FeedForward {
 public:
  // The weights of layer `layer`. Experts are not read before a token goes to them.
  FeedForward(const DeepseekConfig& config, const DeepseekWeights& weights, int64_t layer, at::ScalarType compute);

  // x [tokens, hidden] normalised, `residual` likewise; returns residual + MLP(x), [tokens, hidden].
  at::Tensor forward(const at::Tensor& x, const at::Tensor& residual) const;

  bool has_router() const { return experts_.routed > 0; }
  // Which experts each token goes to. Only for layers that have a router.
  kernels::Routing route(const at::Tensor& x) const;

 private:
  kernels::RouterOptions router_options_;
  kernels::StoredWeight router_;  // hidden -> routed experts
  at::Tensor correction_bias_;    // [routed experts] fp32 or undefined
  kernels::ExpertWeights experts_;
};

}  // namespace distill::teacher
