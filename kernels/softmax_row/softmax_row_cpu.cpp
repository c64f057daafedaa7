#include <algorithm>
#include <limits>

#include "kernels/multiversion.h"
#include "kernels/softmax_row/softmax_row.h"

namespace distill::kernels {
namespace {

constexpr float kSmallestExponent = -87.0f;  // below it exp() leaves fp32's normal numbers

struct ChunkMaximum {
  float value;
  int32_t nans;
};

DISTILL_MULTIVERSION ChunkMaximum maximum_of(const float* x, size_t count) {
  float maximum = -std::numeric_limits<float>::infinity();
  int32_t nans = 0;
#pragma omp simd reduction(max : maximum) reduction(+ : nans)
  for (size_t i = 0; i < count; ++i) {
    maximum = x[i] > maximum ? x[i] : maximum;
    nans += static_cast<int32_t>(x[i] != x[i]);
  }
  return {maximum, nans};
}

DISTILL_MULTIVERSION float exponentials_of(const float* x, size_t count, float maximum, float scale, float* weights) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < count; ++i) {
    const float exponent = (x[i] - maximum) * scale;
    const float weight = vector_exp(exponent);  // of all, so that there is no branch
    weights[i] = exponent < kSmallestExponent ? 0.0f : weight;
    sum += weights[i];
  }
  return sum;
}

}  // namespace

RowMaximum row_maximum(std::span<const float> row, std::span<float> chunk_maxima) {
  int32_t nans = 0;
  size_t best = 0;
  for (size_t chunk = 0; chunk < row_chunks(row.size()); ++chunk) {
    const size_t begin = chunk * kRowChunk;
    const ChunkMaximum maximum = maximum_of(row.data() + begin, std::min(kRowChunk, row.size() - begin));
    chunk_maxima[chunk] = maximum.value;
    nans += maximum.nans;
    if (maximum.value > chunk_maxima[best]) best = chunk;
  }
  const float value = chunk_maxima[best];
  const auto at = std::find(row.begin() + static_cast<std::ptrdiff_t>(best * kRowChunk), row.end(), value);
  const auto index = at == row.end() ? 0 : at - row.begin();
  return {.value = value, .index = static_cast<int32_t>(index), .has_nan = nans > 0};
}

void row_exponentials(std::span<const float> row, float maximum, float scale, std::span<float> weights,
                      std::span<float> chunk_sums) {
  for (size_t chunk = 0; chunk < row_chunks(row.size()); ++chunk) {
    const size_t begin = chunk * kRowChunk;
    chunk_sums[chunk] = exponentials_of(row.data() + begin, std::min(kRowChunk, row.size() - begin), maximum, scale,
                                        weights.data() + begin);
  }
}

}  // namespace distill::kernels
