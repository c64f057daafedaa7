// The innermost work of attention over a block cache: query rows that share a key-value head against the blocks
// of their sequence, so that each key and value is loaded once for all of them.
#pragma once

#include <cstdint>

#include "kernels/multiversion.h"

namespace distill::kernels {

// The most rows that any of the kernels below takes.
inline constexpr int64_t kMaxQueryRows = 32;

// Rows of one sequence and one key-value head. Row r sees positions [first[r], end[r]), each range being non-empty.
template <typename T>
struct QueryRows {
  int64_t rows = 0;
  const T* q[kMaxQueryRows] = {};
  T* out[kMaxQueryRows] = {};
  int64_t first[kMaxQueryRows] = {};
  int64_t end[kMaxQueryRows] = {};

  const T* keys;          // of this head in block 0, [dim, block_size]; blocks are key_stride apart
  const T* values;        // likewise [block_size, value_dim], value_stride apart
  const int32_t* blocks;  // of this sequence
  int64_t key_stride, value_stride;
  int64_t dim, value_dim, block_size;
  float scale;
};

// What a kernel is chosen by, and how much scratch it needs.
struct QueryShape {
  int64_t dim, value_dim, block_size;
  int64_t positions;  // of the longest context
};

template <typename T>
struct QueryKernel {
  int64_t max_rows;
  // Floats of scratch, on a cache line, that attend() needs.
  int64_t (*scratch)(const QueryShape& shape);
  // Writes out[r] [value_dim] = softmax(q[r] k^T * scale) v over the positions that r sees. Sums are fp32, in an order
  // that depends on dimensions and positions alone: a row is rounded alike whichever rows it shares the pass with.
  void (*attend)(const QueryRows<T>& rows, float* scratch);
};

// The fastest kernel of this machine for a head's dimensions and a block size.
template <typename T>
const QueryKernel<T>& query_kernel(const QueryShape& shape);
template <>
const QueryKernel<float>& query_kernel<float>(const QueryShape& shape);
template <>
const QueryKernel<Bf16>& query_kernel<Bf16>(const QueryShape& shape);

// Fp32 arithmetic in vectors, for every shape: up to 6 rows.
template <typename T>
const QueryKernel<T>& vector_query_kernel();

// AMX, up to 32 rows: products of bf16 with fp32 sums, exponentials rounded to bf16. Null where the machine lacks it or
// dimensions and block size aren't multiples of 32.
const QueryKernel<Bf16>* amx_query_kernel(const QueryShape& shape);

}  // namespace distill::kernels
