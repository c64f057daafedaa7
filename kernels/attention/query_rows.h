// The innermost work of attention over a block cache: a few query rows that share a key-value head against the blocks
// of their sequence, so that each key and value is loaded once for all of them.
#pragma once

#include <cstdint>

#include "kernels/multiversion.h"

namespace distill::kernels {

// How many rows fit the registers of AVX-512 with four accumulators each.
inline constexpr int64_t kMaxQueryRows = 6;

// Rows of one sequence and one key-value head. Row r sees positions [first[r], end[r]), each range being non-empty.
template <typename T>
struct QueryRows {
  int64_t rows = 0;  // at most kMaxQueryRows
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

// Floats of scratch that attend() needs for contexts of up to `positions`.
int64_t query_rows_scratch(int64_t positions, int64_t dim, int64_t value_dim, int64_t block_size);

// Writes out[r] [value_dim] = softmax(q[r] k^T * scale) v over the positions that r sees. Sums are fp32 in ascending
// dimension and position; a row is rounded alike whichever rows it shares the pass with.
void attend(const QueryRows<float>& rows, float* scratch);
void attend(const QueryRows<Bf16>& rows, float* scratch);

}  // namespace distill::kernels
