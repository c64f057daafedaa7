// Matrix products with weights used as a checkpoint stores them: fp32, bf16, or FP8 decoded in registers, one byte per
// parameter.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/fp8/stored_weight.h"

namespace distill::kernels {

// x [tokens, in] fp32 or bf16, contiguous; returns x w^T + bias + residual as `out_dtype` (fp32 or bf16), [tokens,
// out]. `bias` [out] fp32 and `residual` [tokens, out] of x's dtype may be undefined. Products of fp32 activations are
// exact in fp32; bf16 ones are summed in fp32 and rounded once. A row's result never depends on the other rows.
at::Tensor stored_linear(const at::Tensor& x, const StoredWeight& weight, const at::Tensor& bias = {},
                         const at::Tensor& residual = {}, at::ScalarType out_dtype = at::kBFloat16);

// The rows of one weight that belong to each head: head h owns rows [first + h * stride, first + h * stride + rows).
struct HeadRows {
  int64_t first = 0;
  int64_t stride = 0;
  int64_t rows = 0;
};

// x [tokens, heads, in] fp32 or bf16, inner dimension contiguous; each head is multiplied with its own rows of `weight`
// [.., in]. Returns x's dtype, [tokens, heads, rows]. Sums as in stored_linear.
at::Tensor head_linear(const at::Tensor& x, const StoredWeight& weight, const HeadRows& heads);

}  // namespace distill::kernels
