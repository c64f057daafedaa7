// The innermost product of packed_linear: a few rows of x against one panel of 32 outputs, for each instruction set.
#pragma once

#include <cstdint>

#include "kernels/multiversion.h"

namespace distill::kernels {

// Where a tile of outputs comes from and goes to.
template <typename T>
struct Tile;

template <>
struct Tile<Bf16> {
  const Bf16* x;      // [rows, 2 * steps], rows `x_stride` apart
  const Bf16* panel;  // [steps, 32, 2]
  int64_t x_stride;
  int64_t steps;  // pairs of inputs, a multiple of kPairAlignment
  float* sums;    // [rows, 32]
};

template <>
struct Tile<float> {
  const float* x;      // [rows, steps], rows `x_stride` apart
  const float* panel;  // [steps, 32]
  int64_t x_stride;
  int64_t steps;  // inputs
  float* sums;    // [rows, 32]
};

template <typename T>
struct TileKernel {
  int64_t max_rows;  // that share one pass over a panel
  // Writes all of `sums`. A row's sums are rounded alike whatever the number of rows.
  void (*multiply)(const Tile<T>& tile, int64_t rows);
};

// The fastest kernel of this machine, chosen once.
template <typename T>
const TileKernel<T>& tile_kernel();
template <>
const TileKernel<Bf16>& tile_kernel<Bf16>();
template <>
const TileKernel<float>& tile_kernel<float>();

// Each kernel for bf16, or null where this machine or the operating system lacks what it needs. The portable one is
// compiled for AVX-512, AVX2 and SSE2.
const TileKernel<Bf16>* amx_tile_kernel();
const TileKernel<Bf16>* avx512_tile_kernel();
const TileKernel<Bf16>* portable_tile_kernel();

}  // namespace distill::kernels
