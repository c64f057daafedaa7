// Matrix products with weights laid out for streaming: the inference side of every projection.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace distill::kernels {

// A weight [out, in] in panels of 32 outputs: panel p holds, for each pair of inputs k, k+1, the 32 pairs
// (w[32p + j][k], w[32p + j][k + 1]) side by side, so that one pass over memory feeds the bf16 dot products of AVX-512
// and AMX. Missing outputs and inputs are zero.
//
// A weight in blocks of integers lies in the panels that BlockPanel describes (kernels/packed_linear/block_weight.h);
// its values count as if they had been rounded to bf16.
//
// A weight in fp32 has, for each input k, the 32 numbers w[32p + j][k] side by side.
//
// On CUDA, where cuBLAS streams a plain matrix as well, `panels` is that matrix with the same zero inputs at its end.
struct PackedWeight {
  at::Tensor panels;    // [ceil(out / 32), pairs, 32, 2] bf16, pairs = ceil(in / 2) rounded up to kPairAlignment; or
                        // [ceil(out / 32), in / 32, 8, 32, 2] uint8 with two 4-bit codes each; or
                        // [ceil(out / 32), in / 32, 32, 32] int8; or
                        // [ceil(out / 32), in, 32] fp32; or, on CUDA, [out, 2 * pairs] bf16 or [out, in] fp32
  at::Tensor scales{};  // undefined; or [ceil(out / 32), in / 32, 1 or 2, 32] fp16: scales, then mins if there are any
  int64_t in = 0;
  int64_t out = 0;
};

inline constexpr int64_t kPanelWidth = 32;
inline constexpr int64_t kPairAlignment = 16;

// `weight` [out, in] of any floating dtype, rounded to `dtype`: bf16 or fp32.
PackedWeight pack_weight(const at::Tensor& weight, at::ScalarType dtype = at::kBFloat16);

// What x is for this weight, and what its rows are: bf16 or fp32.
at::ScalarType value_type(const PackedWeight& weight);

// x [tokens, in] of the weight's value type, contiguous; returns x w^T + bias + residual as `out_dtype` [tokens, out]:
// fp32 or the value type. `bias` [out] fp32 and `residual` [tokens, out] of the value type may be undefined. Sums are
// fp32 in an order that does not depend on the number of tokens: a row's result never depends on the other rows. (On
// CUDA cuBLAS chooses the order by shape.)
at::Tensor packed_linear(const at::Tensor& x, const PackedWeight& weight, const at::Tensor& bias = {},
                         const at::Tensor& residual = {}, at::ScalarType out_dtype = at::kBFloat16);

// The same with the sums in `y` [tokens, out] fp32, whose rows are contiguous: in place of what is there, or added to
// it. On a CPU only.
void packed_linear_into(const at::Tensor& y, const at::Tensor& x, const PackedWeight& weight, bool add = false);

// Rows `ids` [tokens] int64 of the weight, [tokens, in] of its value type and contiguous: the embedding look-up where
// it is tied to the head.
at::Tensor packed_rows(const PackedWeight& weight, const at::Tensor& ids);

}  // namespace distill::kernels
