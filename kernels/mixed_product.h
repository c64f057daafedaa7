// Matrix products whose factors may be bf16 and whose result is fp32, which at::mm does not offer on a CPU.
#pragma once

#include <ATen/core/Tensor.h>

namespace distill::kernels {

// c = a b + beta c with a [m, k] and b [k, n] both fp32 or both bf16, each contiguous or the transpose of a contiguous
// matrix (rows may lie further apart than they are long), and c [m, n] fp32 with contiguous rows. Sums are fp32. With
// beta 0 the old contents of c don't matter.
void multiply_into(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, float beta = 0);

}  // namespace distill::kernels
