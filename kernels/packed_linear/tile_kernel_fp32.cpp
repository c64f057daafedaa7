#include "kernels/packed_linear/packed_linear.h"
#include "kernels/packed_linear/tile_kernel.h"

namespace distill::kernels {
namespace {

constexpr int64_t kVectors = kPanelWidth / 16;
constexpr int64_t kMaxRows = 6;  // 6 x 2 accumulators keep the multipliers of AVX-512 and AVX2 busy

using Vector = float __attribute__((vector_size(64), aligned(4), may_alias));

// One multiply-add per input and output in ascending order, whatever the number of rows.
template <int kRows>
[[gnu::always_inline]] inline void multiply_rows(const Tile<float>& tile) {
  Vector sums[kRows][kVectors] = {};
  const float* w = tile.panel;
  for (int64_t k = 0; k < tile.steps; ++k, w += kPanelWidth) {
    Vector columns[kVectors];
    for (int v = 0; v < kVectors; ++v) columns[v] = *reinterpret_cast<const Vector*>(w + v * 16);
    for (int row = 0; row < kRows; ++row) {
      const float x = tile.x[row * tile.x_stride + k];
      for (int v = 0; v < kVectors; ++v) sums[row][v] += x * columns[v];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) {
      *reinterpret_cast<Vector*>(tile.sums + row * kPanelWidth + v * 16) = sums[row][v];
    }
  }
}

DISTILL_MULTIVERSION void multiply(const Tile<float>& tile, int64_t rows) {
  switch (rows) {
    case 1:
      return multiply_rows<1>(tile);
    case 2:
      return multiply_rows<2>(tile);
    case 3:
      return multiply_rows<3>(tile);
    case 4:
      return multiply_rows<4>(tile);
    case 5:
      return multiply_rows<5>(tile);
    default:
      return multiply_rows<kMaxRows>(tile);
  }
}

}  // namespace

template <>
const TileKernel<float>& tile_kernel<float>() {
  static constexpr TileKernel<float> kKernel{.max_rows = kMaxRows, .multiply = multiply};
  return kKernel;
}

}  // namespace distill::kernels
