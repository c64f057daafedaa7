// Each weight row is decoded block by block to fp32 and multiplied with every token.
#include <algorithm>
#include <array>
#include <vector>

#include "kernels/stored_linear/row_kernels.h"

namespace distill::kernels {
namespace {

// Partial sums per lane, added up pairwise at the end: an order of its own that vectorises on every machine.
constexpr int64_t kLanes = 16;

struct PortableRow {
  const void* values;   // [in]
  const float* scales;  // [ceil(in / 128)] or null
  int64_t in;
};

template <typename T>
[[gnu::always_inline]] inline void multiply_row(const PortableRow& row, const std::byte* const* x, int64_t tokens,
                                                float* sums, int64_t stride) {
  alignas(64) std::array<float, kScaleBlock> block;
  for (int64_t t = 0; t < tokens; ++t) sums[t * stride] = 0;
  for (int64_t begin = 0; begin < row.in; begin += kScaleBlock) {
    const int64_t count = std::min(kScaleBlock, row.in - begin);
    const T* values = static_cast<const T*>(row.values) + begin;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) block[i] = to_float(values[i]);
    const float scale = row.scales ? row.scales[begin / kScaleBlock] : 1.0f;
    for (int64_t t = 0; t < tokens; ++t) {
      const float* activations = reinterpret_cast<const float*>(x[t]) + begin;
      float lanes[kLanes] = {};
      const int64_t whole = count / kLanes * kLanes;
      for (int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
        for (int64_t j = 0; j < kLanes; ++j) lanes[j] += block[i + j] * activations[i + j];
      }
      for (int64_t i = whole; i < count; ++i) lanes[i - whole] += block[i] * activations[i];
      for (int64_t width = kLanes / 2; width > 0; width /= 2) {
        for (int64_t j = 0; j < width; ++j) lanes[j] += lanes[j + width];
      }
      sums[t * stride] += scale * lanes[0];
    }
  }
}

DISTILL_MULTIVERSION void multiply_row_fp32(const PortableRow& row, const std::byte* const* x, int64_t tokens,
                                            float* sums, int64_t stride) {
  multiply_row<float>(row, x, tokens, sums, stride);
}
DISTILL_MULTIVERSION void multiply_row_bf16(const PortableRow& row, const std::byte* const* x, int64_t tokens,
                                            float* sums, int64_t stride) {
  multiply_row<Bf16>(row, x, tokens, sums, stride);
}
DISTILL_MULTIVERSION void multiply_row_e4m3(const PortableRow& row, const std::byte* const* x, int64_t tokens,
                                            float* sums, int64_t stride) {
  multiply_row<E4m3>(row, x, tokens, sums, stride);
}

}  // namespace

void multiply_rows_portable(const WeightRows& weights, int64_t first_row, int64_t rows, const ActivationRows& x,
                            float* sums, int64_t stride) {
  const auto multiply = weights.type == WeightType::kFp32   ? multiply_row_fp32
                        : weights.type == WeightType::kBf16 ? multiply_row_bf16
                                                            : multiply_row_e4m3;
  std::vector<const std::byte*> pointers;
  for (int64_t t = 0; t < x.rows(); ++t) pointers.push_back(x.row(t));
  for (int64_t r = 0; r < rows; ++r) {
    const PortableRow row{
        .values = weights.values_of(first_row + r), .scales = weights.scales_of(first_row + r), .in = weights.in};
    multiply(row, pointers.data(), x.rows(), sums + r, stride);
  }
}

}  // namespace distill::kernels
