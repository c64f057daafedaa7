// Root-mean-square layer normalisation (Zhang & Sennrich 2019, eq. 4).
#pragma once

#include <ATen/core/Tensor.h>

namespace distill::kernels {

// y = x / sqrt(mean(x^2) + eps) * weight over the last dimension. `x` [..., size] fp32 or bf16 with a contiguous last
// dimension, `weight` [size] of either type; the result has x's shape and dtype, contiguous; sums are fp32.
// Differentiable in both.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

}  // namespace distill::kernels
