#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/packed_linear/block_weight.h"
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

// A packed weight's panels, whatever they are stored in.
class Panels {
 public:
  Panels(const at::Tensor& panels, const std::optional<at::Tensor>& scales) : panels_(panels) {
    if (scales) scales_ = *scales;
  }

  int64_t pairs() const { return scales_.defined() ? panels_.size(1) * kPairAlignment : panels_.size(1); }
  // The bf16 values of one panel [pairs, 64, 2], decoded into `scratch` if they aren't stored as such.
  const Bf16* panel(int64_t index, std::vector<Bf16>& scratch) const {
    if (!scales_.defined()) return static_cast<const Bf16*>(panels_.const_data_ptr()) + index * pairs() * kWidth * 2;
    scratch.resize(static_cast<size_t>(pairs() * kWidth * 2));
    decode_panel(blocks(index, 0, panels_.size(1)), scratch.data());
    return scratch.data();
  }
  int64_t outputs() const { return panels_.size(0) * kWidth; }

 private:
  BlockPanel blocks(int64_t index, int64_t first, int64_t count) const {
    const int64_t block = index * panels_.size(1) + first;
    const auto* codes = static_cast<const char*>(panels_.const_data_ptr());
    const auto* scales = static_cast<const uint16_t*>(scales_.const_data_ptr());
    return {.codes = codes + block * panels_.stride(1),
            .scales = scales + block * scales_.stride(1),
            .blocks = count,
            .four_bits = panels_.scalar_type() == at::kByte,
            .has_mins = scales_.size(2) == 2};
  }

  at::Tensor panels_;
  at::Tensor scales_;
};

struct Problem {
  const Bf16* x;  // [tokens, 2 * pairs]
  const Panels& panels;
  const float* bias;     // or null
  const Bf16* residual;  // or null
  int64_t tokens, pairs, out;
};

template <typename Out>
void multiply_panel(const Problem& problem, const Bf16* panel, int64_t column, int64_t first_row, int64_t end_row,
                    float* sums, Out* out) {
  const TileKernel& kernel = tile_kernel();
  const int64_t width = std::min(kWidth, problem.out - column);
  for (int64_t row = first_row; row < end_row; row += kernel.max_rows) {
    const int64_t rows = std::min(kernel.max_rows, end_row - row);
    kernel.multiply({.x = problem.x + row * 2 * problem.pairs,
                     .panel = panel,
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
    std::vector<Bf16> scratch;
    for (int64_t row = 0; row < problem.tokens; row += kRowBlock) {
      const int64_t end_row = std::min(problem.tokens, row + kRowBlock);
      for (int64_t i = begin; i < end; ++i) {
        multiply_panel(problem, problem.panels.panel(i, scratch), i * kWidth, row, end_row, sums.data(), out);
      }
    }
  });
}

at::Tensor packed_linear_cpu(const at::Tensor& x, const at::Tensor& panels, const std::optional<at::Tensor>& scales,
                             int64_t out, const std::optional<at::Tensor>& bias,
                             const std::optional<at::Tensor>& residual, at::ScalarType out_dtype) {
  const Panels all_panels(panels, scales);
  const Problem problem{
      .x = static_cast<const Bf16*>(x.const_data_ptr()),
      .panels = all_panels,
      .bias = bias ? bias->const_data_ptr<float>() : nullptr,
      .residual = residual ? static_cast<const Bf16*>(residual->const_data_ptr()) : nullptr,
      .tokens = x.size(0),
      .pairs = all_panels.pairs(),
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

at::Tensor packed_rows_cpu(const at::Tensor& panels_in, const std::optional<at::Tensor>& scales, int64_t in,
                           const at::Tensor& ids_in) {
  const Panels panels(panels_in, scales);
  const at::Tensor ids = ids_in.contiguous();
  const at::Tensor rows = at::empty({ids.size(0), in}, panels_in.options().dtype(at::kBFloat16));
  const auto* id = ids.const_data_ptr<int64_t>();
  auto* out = static_cast<Bf16*>(rows.mutable_data_ptr());
  at::parallel_for(0, ids.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<Bf16> scratch;
    for (int64_t i = begin; i < end; ++i) {
      TORCH_CHECK(id[i] >= 0 && id[i] < panels.outputs(), "packed_rows: id ", id[i], " is outside the weight");
      const Bf16* pairs = panels.panel(id[i] / kWidth, scratch) + id[i] % kWidth * 2;
      for (int64_t k = 0; k < in; ++k) out[i * in + k] = pairs[k / 2 * kWidth * 2 + k % 2];
    }
  });
  return rows;
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("packed_linear", packed_linear_cpu);
  library.impl("packed_rows", packed_rows_cpu);
}

}  // namespace
}  // namespace distill::kernels
