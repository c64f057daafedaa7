#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/packed_linear/packed_linear.h"
#include "kernels/packed_linear/tile_kernel.h"

namespace distill::kernels {
namespace {

constexpr int64_t kWidth = kPanelWidth;
constexpr int64_t kRowBlock = 192;     // rows of x kept in cache while the panels pass by
constexpr int64_t kGrainMacs = 32768;  // multiply-adds worth a thread

template <typename Out>
[[gnu::always_inline]] inline void finish(const float* sums, const float* bias, const Bf16* residual, Out* out,
                                          int64_t width) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    out[j] = from_float<Out>(sums[j] + (bias ? bias[j] : 0.0f) + (residual ? to_float(residual[j]) : 0.0f));
  }
}

DISTILL_MULTIVERSION void finish_row(const float* sums, const float* bias, const Bf16* residual, float* out,
                                     int64_t width) {
  finish(sums, bias, residual, out, width);
}
DISTILL_MULTIVERSION void finish_row(const float* sums, const float* bias, const Bf16* residual, Bf16* out,
                                     int64_t width) {
  finish(sums, bias, residual, out, width);
}

struct Problem {
  const Bf16* x;  // [tokens, 2 * pairs]
  const Bf16* panels;
  const float* bias;     // or null
  const Bf16* residual;  // or null
  int64_t tokens, pairs, out;
};

template <typename Out>
void multiply_panel(const Problem& problem, int64_t panel, int64_t first_row, int64_t end_row, float* sums, Out* out) {
  const TileKernel& kernel = tile_kernel();
  const int64_t column = panel * kWidth;
  const int64_t width = std::min(kWidth, problem.out - column);
  for (int64_t row = first_row; row < end_row; row += kernel.max_rows) {
    const int64_t rows = std::min(kernel.max_rows, end_row - row);
    kernel.multiply({.x = problem.x + row * 2 * problem.pairs,
                     .panel = problem.panels + panel * problem.pairs * kWidth * 2,
                     .x_stride = 2 * problem.pairs,
                     .pairs = problem.pairs,
                     .sums = sums},
                    rows);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (row + i) * problem.out + column;
      finish_row(sums + i * kWidth, problem.bias ? problem.bias + column : nullptr,
                 problem.residual ? problem.residual + at : nullptr, out + at, width);
    }
  }
}

template <typename Out>
void multiply_all(const Problem& problem, Out* out) {
  const int64_t panels = (problem.out + kWidth - 1) / kWidth;
  const int64_t macs_per_panel = std::max<int64_t>(1, problem.tokens * problem.pairs * 2 * kWidth);
  at::parallel_for(0, panels, std::max<int64_t>(1, kGrainMacs / macs_per_panel), [&](int64_t begin, int64_t end) {
    std::vector<float> sums(static_cast<size_t>(tile_kernel().max_rows * kWidth));
    for (int64_t row = 0; row < problem.tokens; row += kRowBlock) {
      const int64_t end_row = std::min(problem.tokens, row + kRowBlock);
      for (int64_t panel = begin; panel < end; ++panel) multiply_panel(problem, panel, row, end_row, sums.data(), out);
    }
  });
}

at::Tensor packed_linear_cpu(const at::Tensor& x, const at::Tensor& panels, int64_t out,
                             const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual,
                             at::ScalarType out_dtype) {
  const Problem problem{
      .x = static_cast<const Bf16*>(x.const_data_ptr()),
      .panels = static_cast<const Bf16*>(panels.const_data_ptr()),
      .bias = bias ? bias->const_data_ptr<float>() : nullptr,
      .residual = residual ? static_cast<const Bf16*>(residual->const_data_ptr()) : nullptr,
      .tokens = x.size(0),
      .pairs = panels.size(1),
      .out = out,
  };
  const at::Tensor y = at::empty({problem.tokens, out}, x.options().dtype(out_dtype));
  if (out_dtype == at::kFloat) {
    multiply_all(problem, y.mutable_data_ptr<float>());
  } else {
    TORCH_CHECK(out_dtype == at::kBFloat16, "packed_linear: out_dtype must be fp32 or bf16, is ", out_dtype);
    multiply_all(problem, static_cast<Bf16*>(y.mutable_data_ptr()));
  }
  return y;
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("packed_linear", packed_linear_cpu);
}

}  // namespace
}  // namespace distill::kernels
