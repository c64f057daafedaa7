// Rotary position embedding (Su et al., RoFormer, 2021), in the layout of Llama: the first half of a head rotates with
// the second half.
#pragma once

#include <ATen/core/Tensor.h>

namespace distill::kernels {

// x [tokens, heads, dim] fp32 or bf16, inner dimensions contiguous, dimension 0 of any stride; cos, sin
// [tokens, rotated / 2] fp32 with rotated <= dim (the rest of a head is passed through). Returns x's shape, contiguous:
// y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin. Differentiable in x.
at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// The layout of DeepSeek: dimension 2i rotates with 2i + 1. x [tokens, heads, dim] fp32 or bf16, inner dimension
// contiguous, the others of any stride; cos, sin [tokens, dim / 2] fp32. Returns x's shape, contiguous, in the order of
// Llama's layout: y[i] = x[2i] cos - x[2i + 1] sin, y[dim / 2 + i] = x[2i + 1] cos + x[2i] sin. On CPUs, without
// gradient.
at::Tensor rotary_of_pairs(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

}  // namespace distill::kernels
