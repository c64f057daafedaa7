// Inner products of activation rows with weight rows that lie in memory as a checkpoint stores them: the inner loops of
// stored_linear, grouped_gemm and mla_attention. FP8 is decoded in registers. Internal to kernels/.
//
// An inner product is summed in fp32 in an order that depends on its length and the instruction set alone, never on how
// many rows or tokens are computed together: results do not change with the batch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/fp8/e4m3.h"
#include "kernels/fp8/stored_weight.h"
#include "kernels/multiversion.h"

namespace distill::kernels {

enum class WeightType { kFp32, kBf16, kE4m3 };

// Which inner loops run. kAvx512Bf16 needs AVX-512 with BW, VL, VBMI and BF16, and GFNI; kAmx needs AMX
// tiles of bf16 besides.
enum class RowIsa { kPortable, kAvx512Bf16, kAmx };

// The fastest one that this machine has and that applies: fp32 activations and fp32 weights are multiplied in fp32, by
// the portable loops.
RowIsa best_row_isa(at::ScalarType activations, WeightType weights);

// Rows of a weight in memory.
struct WeightRows {
  const void* values = nullptr;   // [rows, in], contiguous
  const float* scales = nullptr;  // FP8: [ceil(rows / 128), ceil(in / 128)]
  int64_t in = 0;
  WeightType type = WeightType::kFp32;

  static WeightRows of(const StoredWeight& weight);
  int64_t row_bytes() const;
  const std::byte* values_of(int64_t row) const;
  const float* scales_of(int64_t row) const;  // of the row's blocks, or null
};

// Activations [rows, size] laid out for one instruction set and weight type.
//   kPortable    rows of fp32
//   kAvx512Bf16  rows of bf16, padded with zeros to whole steps of 64 inputs
//   kAmx         groups of 16 rows, each [steps * 32 pairs of inputs, 16 rows, 2] bf16; fewer rows in all
//                are one narrower group
// AMX: for FP8 weights the inputs of a step are ordered as the decoder emits its values.
class ActivationRows {
 public:
  static constexpr int64_t kGroup = 16;  // rows that AMX multiplies together

  ActivationRows(int64_t rows, int64_t size, RowIsa isa, WeightType weights);

  void set(int64_t row, const float* values);
  void set(int64_t row, const Bf16* values);
  // values [count], at [first, first + count) of the row.
  void set_part(int64_t row, int64_t first, const float* values, int64_t count);

  int64_t rows() const { return rows_; }
  // AMX: of the first row of a group, the group.
  const std::byte* row(int64_t index) const { return lines_.front().bytes + index * row_bytes_; }
  RowIsa isa() const { return isa_; }
  // AMX: from one pair of inputs to the next.
  int64_t pair_bytes() const { return std::min(rows_, kGroup) * 4; }

 private:
  int64_t index_of(int64_t i) const;
  void set_run(int64_t row, int64_t i, const Bf16* values);
  std::byte* bf16_at(int64_t row, int64_t i);
  std::byte* mutable_row(int64_t index) { return lines_.front().bytes + index * row_bytes_; }

  int64_t rows_;
  int64_t size_;
  RowIsa isa_;
  bool shuffled_;
  int64_t row_bytes_;
  // Whole cache lines, so that no load crosses one.
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> lines_;
};

// Of `rows` in all, how many to a work item: a power of two, so that no item reaches over the end of a block of scales,
// as many as leave every thread several items.
int64_t rows_per_item(int64_t rows);

// sums[t * stride + r] = weight row (first_row + r) times activation row t, for r in [0, rows) and every row of `x`,
// which was made for weights.type. Meanwhile memory from `next` on is fetched, where the caller will read weights
// after these; null stands for the rows that follow.
void multiply_rows(const WeightRows& weights, int64_t first_row, int64_t rows, const ActivationRows& x, float* sums,
                   int64_t stride, const std::byte* next = nullptr);

}  // namespace distill::kernels
