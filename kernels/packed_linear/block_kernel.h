// A few rows of x against one panel of a block weight, decoded and multiplied at once: the decoded values never leave
// the first-level cache. Internal to packed_linear.
#pragma once

#include <cstdint>

#include "kernels/packed_linear/block_weight.h"

namespace distill::kernels {

inline constexpr int64_t kMaxBlockRows = 32;

struct BlockKernel {
  // Lays out `rows` <= kMaxBlockRows rows of x, `x_stride` apart, for multiply(): in `buffer`, which holds
  // arranged_size(blocks) values and lies on a cache line, or where they are.
  const Bf16* (*arrange)(const Bf16* x, int64_t x_stride, int64_t rows, int64_t blocks, Bf16* buffer);
  // Before a thread's calls of multiply() with that many rows.
  void (*begin)(int64_t rows);
  // Writes sums [rows, 32], the very same as the tile kernel of this machine has them.
  void (*multiply)(const BlockPanel& panel, const Bf16* arranged, int64_t rows, float* sums);
  // After them.
  void (*end)();
};

constexpr int64_t arranged_size(int64_t blocks) {
  return kMaxBlockRows * blocks * kBlockInputs;
}

// For AMX; null where this machine hasn't got it: there the tile kernels multiply decoded panels.
const BlockKernel* block_kernel();

}  // namespace distill::kernels
