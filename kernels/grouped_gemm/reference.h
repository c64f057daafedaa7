// The formula of grouped_mlp in plain ATen, in fp64, for tests.
#pragma once

#include <ATen/ATen.h>

#include "kernels/grouped_gemm/grouped_gemm.h"

namespace distill::kernels::reference {

inline at::Tensor grouped_mlp(const at::Tensor& x, const at::Tensor& experts, const at::Tensor& gates,
                              const ExpertWeights& weights) {
  const auto weight = [&](int64_t index) {
    const auto i = static_cast<size_t>(index);
    return dequantise({.values = weights.values[i], .scales = weights.scales[i]}).to(at::kDouble);
  };
  at::Tensor y = at::zeros(x.sizes(), at::kDouble);
  for (int64_t t = 0; t < x.size(0); ++t) {
    const auto add = [&](int64_t expert, double gate) {
      const at::Tensor token = x[t].to(at::kDouble);
      const at::Tensor hidden = at::silu(weight(3 * expert).mv(token)) * weight(3 * expert + 1).mv(token);
      y[t] += gate * weight(3 * expert + 2).mv(hidden);
    };
    for (int64_t i = 0; i < experts.size(1); ++i) add(experts[t][i].item<int32_t>(), gates[t][i].item<float>());
    for (int64_t e = weights.routed; e < weights.count(); ++e) add(e, 1);
  }
  return y;
}

}  // namespace distill::kernels::reference
