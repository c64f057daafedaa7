#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "kernels/multiversion.h"
#include "kernels/packed_linear/packed_linear.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace distill::kernels {
namespace {

constexpr int64_t kWidth = kPanelWidth;
constexpr int64_t kMaxRows = 6;     // rows of x that share one pass over a panel: 6 x 4 accumulators fill the registers
constexpr int64_t kRowBlock = 120;  // rows of x kept in cache while the panels pass by; a multiple of kMaxRows
constexpr int64_t kGrainMacs = 32768;  // multiply-adds worth a thread

// Where a tile of outputs comes from and goes to: `rows` rows of x against one panel.
struct Tile {
  const Bf16* x;      // [rows, 2 * pairs]
  const Bf16* panel;  // [pairs, 64, 2]
  int64_t pairs;
  float* sums;  // [rows, 64]
};

template <int kRows>
[[gnu::always_inline]] inline void multiply_portable(const Tile& tile) {
  for (int64_t i = 0; i < kRows * kWidth; ++i) tile.sums[i] = 0;
  for (int64_t k = 0; k < tile.pairs; ++k) {
    const Bf16* w = tile.panel + k * kWidth * 2;
    for (int row = 0; row < kRows; ++row) {
      const float x0 = to_float(tile.x[row * 2 * tile.pairs + 2 * k]);
      const float x1 = to_float(tile.x[row * 2 * tile.pairs + 2 * k + 1]);
      float* sum = tile.sums + row * kWidth;
#pragma omp simd
      for (int64_t j = 0; j < kWidth; ++j) sum[j] += x0 * to_float(w[2 * j]) + x1 * to_float(w[2 * j + 1]);
    }
  }
}

// Row by row, so that a row's sums are rounded alike in every tile size.
DISTILL_MULTIVERSION void multiply_row_portable(const Tile& tile) {
  multiply_portable<1>(tile);
}

template <int kRows>
void multiply_rows_portable(const Tile& tile) {
  for (int row = 0; row < kRows; ++row) {
    multiply_row_portable({.x = tile.x + row * 2 * tile.pairs,
                           .panel = tile.panel,
                           .pairs = tile.pairs,
                           .sums = tile.sums + row * kWidth});
  }
}

#ifdef __x86_64__
template <int kRows>
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) void multiply_rows_avx512(const Tile& tile) {
  constexpr int kVectors = kWidth / 16;
  __m512 sums[kRows][kVectors];
  for (auto& row : sums) {
    for (auto& sum : row) sum = _mm512_setzero_ps();
  }
  const auto* w = reinterpret_cast<const char*>(tile.panel);
  const auto* x = reinterpret_cast<const int32_t*>(tile.x);  // one pair of bf16 each
  for (int64_t k = 0; k < tile.pairs; ++k, w += kWidth * 4) {
    __m512bh columns[kVectors];
    for (int v = 0; v < kVectors; ++v) columns[v] = (__m512bh)_mm512_loadu_si512(w + v * 64);
    for (int row = 0; row < kRows; ++row) {
      const auto pair = (__m512bh)_mm512_set1_epi32(x[row * tile.pairs + k]);
      for (int v = 0; v < kVectors; ++v) sums[row][v] = _mm512_dpbf16_ps(sums[row][v], pair, columns[v]);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(tile.sums + row * kWidth + v * 16, sums[row][v]);
  }
}

bool has_avx512_bf16() {
  static const bool has =
      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return has;
}
#endif

using Multiply = void (*)(const Tile&);

template <size_t... kRows>
std::array<Multiply, kMaxRows> choose_kernels(std::index_sequence<kRows...>) {
#ifdef __x86_64__
  if (has_avx512_bf16()) return {multiply_rows_avx512<kRows + 1>...};
#endif
  return {multiply_rows_portable<kRows + 1>...};
}

// kernels[rows - 1] multiplies that many rows.
const std::array<Multiply, kMaxRows>& kernels() {
  static const auto chosen = choose_kernels(std::make_index_sequence<kMaxRows>());
  return chosen;
}

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
  const Bf16* x;
  const Bf16* panels;
  const float* bias;     // or null
  const Bf16* residual;  // or null
  int64_t tokens, pairs, out;
};

template <typename Out>
void multiply_panel(const Problem& problem, int64_t panel, int64_t first_row, int64_t end_row, Out* out) {
  alignas(64) std::array<float, kMaxRows * kWidth> sums;
  const int64_t column = panel * kWidth;
  const int64_t width = std::min(kWidth, problem.out - column);
  for (int64_t row = first_row; row < end_row; row += kMaxRows) {
    const int64_t rows = std::min(kMaxRows, end_row - row);
    kernels()[static_cast<size_t>(rows - 1)]({.x = problem.x + row * 2 * problem.pairs,
                                              .panel = problem.panels + panel * problem.pairs * kWidth * 2,
                                              .pairs = problem.pairs,
                                              .sums = sums.data()});
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (row + i) * problem.out + column;
      finish_row(sums.data() + i * kWidth, problem.bias ? problem.bias + column : nullptr,
                 problem.residual ? problem.residual + at : nullptr, out + at, width);
    }
  }
}

template <typename Out>
void multiply_all(const Problem& problem, Out* out) {
  const int64_t panels = (problem.out + kWidth - 1) / kWidth;
  const int64_t macs_per_panel = std::max<int64_t>(1, problem.tokens * problem.pairs * 2 * kWidth);
  at::parallel_for(0, panels, std::max<int64_t>(1, kGrainMacs / macs_per_panel), [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < problem.tokens; row += kRowBlock) {
      const int64_t end_row = std::min(problem.tokens, row + kRowBlock);
      for (int64_t panel = begin; panel < end; ++panel) multiply_panel(problem, panel, row, end_row, out);
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
