// The instruction sets behind multiply_rows, one function each, with its arguments; `next`, where it is used, is never
// null. Internal to stored_linear.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/stored_linear/row_products.h"

namespace distill::kernels {

void multiply_rows_portable(const WeightRows& weights, int64_t first_row, int64_t rows, const ActivationRows& x,
                            float* sums, int64_t stride);

// AVX-512 with BW, VL, VBMI and BF16, and GFNI.
bool has_avx512_rows();
void multiply_rows_avx512(const WeightRows& weights, int64_t first_row, int64_t rows, const ActivationRows& x,
                          float* sums, int64_t stride, const std::byte* next);

// The same and AMX tiles of bf16.
bool has_amx_rows();
void multiply_rows_amx(const WeightRows& weights, int64_t first_row, int64_t rows, const ActivationRows& x, float* sums,
                       int64_t stride, const std::byte* next);

}  // namespace distill::kernels
