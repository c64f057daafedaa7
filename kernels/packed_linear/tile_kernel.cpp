#include "kernels/packed_linear/tile_kernel.h"

#include <array>
#include <utility>

#include "kernels/cpu_features.h"
#include "kernels/packed_linear/packed_linear.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace distill::kernels {
namespace {

constexpr int64_t kWidth = kPanelWidth;

// Row by row, so that a row's sums are rounded alike in every tile size.
DISTILL_MULTIVERSION void multiply_row_portable(const Bf16* x, const Bf16* panel, int64_t pairs, float* sums) {
  for (int64_t j = 0; j < kWidth; ++j) sums[j] = 0;
  for (int64_t k = 0; k < pairs; ++k) {
    const Bf16* w = panel + k * kWidth * 2;
    const float x0 = to_float(x[2 * k]);
    const float x1 = to_float(x[2 * k + 1]);
#pragma omp simd
    for (int64_t j = 0; j < kWidth; ++j) sums[j] += x0 * to_float(w[2 * j]) + x1 * to_float(w[2 * j + 1]);
  }
}

void multiply_portable(const Tile<Bf16>& tile, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    multiply_row_portable(tile.x + row * tile.x_stride, tile.panel, tile.steps, tile.sums + row * kWidth);
  }
}

constexpr TileKernel<Bf16> kPortable{.max_rows = 6, .multiply = multiply_portable};

#ifdef __x86_64__
constexpr size_t kAvx512Rows = 12;  // 12 x 2 accumulators fill the registers

template <int kRows>
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) void multiply_rows(const Tile<Bf16>& tile) {
  constexpr int kVectors = kWidth / 16;
  __m512 sums[kRows][kVectors];
  for (auto& row : sums) {
    for (auto& sum : row) sum = _mm512_setzero_ps();
  }
  const auto* w = reinterpret_cast<const char*>(tile.panel);
  const auto* x = reinterpret_cast<const char*>(tile.x);
  for (int64_t k = 0; k < tile.steps; ++k, w += kWidth * 4) {
    __m512bh columns[kVectors];
    for (int v = 0; v < kVectors; ++v) columns[v] = (__m512bh)_mm512_loadu_si512(w + v * 64);
    for (int row = 0; row < kRows; ++row) {
      int32_t two = 0;
      __builtin_memcpy(&two, x + (row * tile.x_stride + 2 * k) * 2, sizeof two);
      const auto pair = (__m512bh)_mm512_set1_epi32(two);
      for (int v = 0; v < kVectors; ++v) sums[row][v] = _mm512_dpbf16_ps(sums[row][v], pair, columns[v]);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(tile.sums + row * kWidth + v * 16, sums[row][v]);
  }
}

template <size_t... kRows>
void multiply_avx512_as(std::index_sequence<kRows...>, const Tile<Bf16>& tile, int64_t rows) {
  constexpr std::array<void (*)(const Tile<Bf16>&), sizeof...(kRows)> kBySize{multiply_rows<kRows + 1>...};
  kBySize[static_cast<size_t>(rows - 1)](tile);
}

void multiply_avx512(const Tile<Bf16>& tile, int64_t rows) {
  multiply_avx512_as(std::make_index_sequence<kAvx512Rows>(), tile, rows);
}

#endif

}  // namespace

const TileKernel<Bf16>* portable_tile_kernel() {
  return &kPortable;
}

const TileKernel<Bf16>* avx512_tile_kernel() {
#ifdef __x86_64__
  static constexpr TileKernel<Bf16> kKernel{.max_rows = kAvx512Rows, .multiply = multiply_avx512};
  if (has_avx512_bf16()) return &kKernel;
#endif
  return nullptr;
}

template <>
const TileKernel<Bf16>& tile_kernel<Bf16>() {
  static const TileKernel<Bf16>& chosen = [&]() -> const TileKernel<Bf16>& {
    for (const TileKernel<Bf16>* kernel : {amx_tile_kernel(), avx512_tile_kernel()}) {
      if (kernel != nullptr) return *kernel;
    }
    return *portable_tile_kernel();
  }();
  return chosen;
}

}  // namespace distill::kernels
