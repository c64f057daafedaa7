#include <algorithm>
#include <limits>

#include "kernels/attention/query_rows.h"

namespace distill::kernels {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kVectorRows = 6;  // with four accumulators each they fit the registers of AVX-512

using Vector = float __attribute__((vector_size(64), aligned(4), may_alias));
using Halves = uint16_t __attribute__((vector_size(32), aligned(2), may_alias));
using Words = uint32_t __attribute__((vector_size(64)));

// Vectors are passed by reference: by value they would depend on the instruction set of caller and callee.
[[gnu::always_inline]] inline void load(const float* values, Vector& vector) {
  vector = *reinterpret_cast<const Vector*>(values);
}
[[gnu::always_inline]] inline void load(const Bf16* values, Vector& vector) {
  const auto halves = *reinterpret_cast<const Halves*>(values);
  vector = reinterpret_cast<Vector>(__builtin_convertvector(halves, Words) << 16);
}
[[gnu::always_inline]] inline void store(float* values, const Vector& vector) {
  *reinterpret_cast<Vector*>(values) = vector;
}

// The positions any of the rows sees, and where their scores lie in the scratch.
struct Span {
  int64_t first_block, end_block;
  int64_t origin;  // the first position of the first block
  int64_t size;    // positions in all blocks

  template <typename T>
  explicit Span(const QueryRows<T>& rows) {
    int64_t first = rows.first[0];
    int64_t end = rows.end[0];
    for (int64_t r = 1; r < rows.rows; ++r) {
      first = std::min(first, rows.first[r]);
      end = std::max(end, rows.end[r]);
    }
    first_block = first / rows.block_size;
    end_block = (end + rows.block_size - 1) / rows.block_size;
    origin = first_block * rows.block_size;
    size = (end_block - first_block) * rows.block_size;
  }
};

// scores [kRows, stride] of one block: keys lie [dim, block_size], so neighbouring tokens are computed side by side.
// `q` [kRows, dim] is scaled.
template <int kRows, typename T>
[[gnu::always_inline]] inline void score_block(const QueryRows<T>& rows, const T* keys, const float* q, float* scores,
                                               int64_t stride) {
  int64_t j = 0;
  for (; j + kLanes <= rows.block_size; j += kLanes) {
    Vector sums[kRows] = {};
    for (int64_t d = 0; d < rows.dim; ++d) {
      Vector key;
      load(keys + d * rows.block_size + j, key);
      for (int r = 0; r < kRows; ++r) sums[r] += q[r * rows.dim + d] * key;
    }
    for (int r = 0; r < kRows; ++r) store(scores + r * stride + j, sums[r]);
  }
  for (; j < rows.block_size; ++j) {
    for (int r = 0; r < kRows; ++r) {
      float sum = 0;
      for (int64_t d = 0; d < rows.dim; ++d) sum += q[r * rows.dim + d] * to_float(keys[d * rows.block_size + j]);
      scores[r * stride + j] = sum;
    }
  }
}

// Turns the visible part of a row's scores into exponentials, the rest into zeros. Returns their sum.
[[gnu::always_inline]] inline float exponentiate(float* scores, int64_t first, int64_t end, int64_t size) {
  float maximum = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : maximum)
  for (int64_t j = first; j < end; ++j) maximum = std::max(maximum, scores[j]);
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = first; j < end; ++j) {
    scores[j] = vector_exp(scores[j] - maximum);
    total += scores[j];
  }
  std::fill(scores, scores + first, 0.0f);
  std::fill(scores + end, scores + size, 0.0f);
  return total;
}

// sums [kRows, value_dim], from `column` on kVectors * 16 wide, of the values weighted with `weights` [kRows, stride].
template <int kRows, int kVectors, typename T>
[[gnu::always_inline]] inline void mix_columns(const QueryRows<T>& rows, const Span& span, int64_t begin, int64_t end,
                                               const float* weights, int64_t column, float* sums) {
  Vector mixed[kRows][kVectors] = {};
  for (int64_t b = span.first_block; b < span.end_block; ++b) {
    const T* block = rows.values + rows.blocks[b] * rows.value_stride + column;
    const int64_t block_begin = b * rows.block_size - span.origin;
    const int64_t from = std::max(begin, block_begin);
    const int64_t to = std::min(end, block_begin + rows.block_size);
    for (int64_t j = from; j < to; ++j) {
      const T* value = block + (j - block_begin) * rows.value_dim;
      Vector loaded[kVectors];
      for (int v = 0; v < kVectors; ++v) load(value + v * kLanes, loaded[v]);
      for (int r = 0; r < kRows; ++r) {
        const float weight = weights[r * span.size + j];
        for (int v = 0; v < kVectors; ++v) mixed[r][v] += weight * loaded[v];
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) store(sums + r * rows.value_dim + column + v * kLanes, mixed[r][v]);
  }
}

// The same for one column that is left over.
template <int kRows, typename T>
[[gnu::always_inline]] inline void mix_column(const QueryRows<T>& rows, const Span& span, int64_t begin, int64_t end,
                                              const float* weights, int64_t column, float* sums) {
  for (int r = 0; r < kRows; ++r) {
    float sum = 0;
    for (int64_t j = begin; j < end; ++j) {
      const int64_t position = span.origin + j;
      const T* block = rows.values + rows.blocks[position / rows.block_size] * rows.value_stride;
      sum += weights[r * span.size + j] * to_float(block[position % rows.block_size * rows.value_dim + column]);
    }
    sums[r * rows.value_dim + column] = sum;
  }
}

template <int kRows, typename T>
[[gnu::always_inline]] inline void attend_rows(const QueryRows<T>& rows, float* scratch) {
  const Span span(rows);
  float* const q = scratch;                             // [kRows, dim]
  float* const sums = q + kRows * rows.dim;             // [kRows, value_dim]
  float* const scores = sums + kRows * rows.value_dim;  // [kRows, span.size]
  for (int r = 0; r < kRows; ++r) {
#pragma omp simd
    for (int64_t d = 0; d < rows.dim; ++d) q[r * rows.dim + d] = to_float(rows.q[r][d]) * rows.scale;
  }
  for (int64_t b = span.first_block; b < span.end_block; ++b) {
    score_block<kRows>(rows, rows.keys + rows.blocks[b] * rows.key_stride, q,
                       scores + (b - span.first_block) * rows.block_size, span.size);
  }
  float totals[kRows];
  int64_t begin = span.size;
  int64_t end = 0;
  for (int r = 0; r < kRows; ++r) {
    const int64_t first = rows.first[r] - span.origin;
    const int64_t last = rows.end[r] - span.origin;
    totals[r] = exponentiate(scores + r * span.size, first, last, span.size);
    begin = std::min(begin, first);
    end = std::max(end, last);
  }
  int64_t column = 0;
  for (; column + 4 * kLanes <= rows.value_dim; column += 4 * kLanes) {
    mix_columns<kRows, 4>(rows, span, begin, end, scores, column, sums);
  }
  for (; column + kLanes <= rows.value_dim; column += kLanes) {
    mix_columns<kRows, 1>(rows, span, begin, end, scores, column, sums);
  }
  for (; column < rows.value_dim; ++column) mix_column<kRows>(rows, span, begin, end, scores, column, sums);
  for (int r = 0; r < kRows; ++r) {
    const float inverse = 1.0f / totals[r];
#pragma omp simd
    for (int64_t d = 0; d < rows.value_dim; ++d) {
      rows.out[r][d] = from_float<T>(sums[r * rows.value_dim + d] * inverse);
    }
  }
}

template <typename T>
[[gnu::always_inline]] inline void attend_any(const QueryRows<T>& rows, float* scratch) {
  switch (rows.rows) {
    case 1:
      return attend_rows<1>(rows, scratch);
    case 2:
      return attend_rows<2>(rows, scratch);
    case 3:
      return attend_rows<3>(rows, scratch);
    case 4:
      return attend_rows<4>(rows, scratch);
    case 5:
      return attend_rows<5>(rows, scratch);
    default:
      return attend_rows<kVectorRows>(rows, scratch);
  }
}

DISTILL_MULTIVERSION void attend_here(const QueryRows<float>& rows, float* scratch) {
  attend_any(rows, scratch);
}
DISTILL_MULTIVERSION void attend_here(const QueryRows<Bf16>& rows, float* scratch) {
  attend_any(rows, scratch);
}

int64_t scratch_size(const QueryShape& shape) {
  return kVectorRows * (shape.dim + shape.value_dim + shape.positions + 2 * shape.block_size);
}

template <typename T>
void attend(const QueryRows<T>& rows, float* scratch) {
  attend_here(rows, scratch);
}

}  // namespace

template <typename T>
const QueryKernel<T>& vector_query_kernel() {
  static constexpr QueryKernel<T> kKernel{.max_rows = kVectorRows, .scratch = scratch_size, .attend = attend<T>};
  return kKernel;
}
template const QueryKernel<float>& vector_query_kernel();
template const QueryKernel<Bf16>& vector_query_kernel();

template <>
const QueryKernel<float>& query_kernel<float>(const QueryShape&) {
  return vector_query_kernel<float>();
}

template <>
const QueryKernel<Bf16>& query_kernel<Bf16>(const QueryShape& shape) {
  const QueryKernel<Bf16>* amx = amx_query_kernel(shape);
  return amx != nullptr ? *amx : vector_query_kernel<Bf16>();
}

}  // namespace distill::kernels
