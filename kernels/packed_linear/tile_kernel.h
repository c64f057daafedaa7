// The innermost product of packed_linear: a few rows of x against one panel of 64 outputs, for each instruction set.
#pragma once

#include <cstdint>

#include "kernels/multiversion.h"

namespace distill::kernels {

// Where a tile of outputs comes from and goes to.
struct Tile {
  const Bf16* x;      // [rows, 2 * pairs], rows `x_stride` apart
  const Bf16* panel;  // [pairs, 64, 2]
  int64_t x_stride;
  int64_t pairs;  // a multiple of kPairAlignment
  float* sums;    // [rows, 64]
};

struct TileKernel {
  int64_t max_rows;  // that share one pass over a panel
  // Writes all of `sums`. A row's sums are rounded alike whatever the number of rows.
  void (*multiply)(const Tile& tile, int64_t rows);
};

// The fastest kernel of this machine, chosen once.
const TileKernel& tile_kernel();

// Each kernel, or null where this machine or the operating system lacks what it needs. The portable one is compiled for
// AVX-512, AVX2 and SSE2.
const TileKernel* amx_tile_kernel();
const TileKernel* avx512_tile_kernel();
const TileKernel* portable_tile_kernel();

}  // namespace distill::kernels
