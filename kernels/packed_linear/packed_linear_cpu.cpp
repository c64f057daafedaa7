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

template <typename Residual, typename Out>
[[gnu::always_inline]] inline void finish(const float* sums, const float* bias, const Residual* residual, Out* out,
                                          int64_t width) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    out[j] = from_float<Out>(sums[j] + (bias ? bias[j] : 0.0f) + (residual ? to_float(residual[j]) : 0.0f));
  }
}

DISTILL_MULTIVERSION void finish_row(const float* sums, const float* bias, const float* residual, float* out,
                                     int64_t width) {
  finish(sums, bias, residual, out, width);
}
DISTILL_MULTIVERSION void finish_row(const float* sums, const float* bias, const Bf16* residual, float* out,
                                     int64_t width) {
  finish(sums, bias, residual, out, width);
}
DISTILL_MULTIVERSION void finish_row(const float* sums, const float* bias, const Bf16* residual, Bf16* out,
                                     int64_t width) {
  finish(sums, bias, residual, out, width);
}

// The panels of a weight whose values count as bf16, whatever they are stored in.
class Bf16Panels {
 public:
  using Value = Bf16;

  Bf16Panels(const at::Tensor& panels, const std::optional<at::Tensor>& scales) : panels_(panels) {
    if (scales) scales_ = *scales;
  }

  // Pairs of inputs.
  int64_t steps() const { return scales_.defined() ? panels_.size(1) * kPairAlignment : panels_.size(1); }
  int64_t outputs() const { return panels_.size(0) * kWidth; }
  // The values of one panel [steps, 64, 2], decoded into `scratch` if they aren't stored as such.
  const Bf16* panel(int64_t index, std::vector<Bf16>& scratch) const {
    if (!scales_.defined()) return static_cast<const Bf16*>(panels_.const_data_ptr()) + index * steps() * kWidth * 2;
    scratch.resize(static_cast<size_t>(steps() * kWidth * 2));
    decode_panel(blocks(index, 0, panels_.size(1)), scratch.data());
    return scratch.data();
  }
  // Where input k of output j lies in a panel.
  static int64_t place(int64_t k, int64_t j) { return k / 2 * kWidth * 2 + j * 2 + k % 2; }

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

// The same of a weight in fp32 [steps, 64], a step for each input.
class Fp32Panels {
 public:
  using Value = float;

  explicit Fp32Panels(const at::Tensor& panels) : panels_(panels) {}

  int64_t steps() const { return panels_.size(1); }
  int64_t outputs() const { return panels_.size(0) * kWidth; }
  const float* panel(int64_t index, std::vector<float>& /*scratch*/) const {
    return panels_.const_data_ptr<float>() + index * steps() * kWidth;
  }
  static int64_t place(int64_t k, int64_t j) { return k * kWidth + j; }

 private:
  at::Tensor panels_;
};

template <typename Body>
void with_panels(const at::Tensor& panels, const std::optional<at::Tensor>& scales, Body&& body) {
  if (panels.scalar_type() == at::kFloat) {
    body(Fp32Panels(panels));
  } else {
    body(Bf16Panels(panels, scales));
  }
}

template <typename Panels>
struct Problem {
  const typename Panels::Value* x;  // [tokens, x_stride]
  const Panels& panels;
  const float* bias;                       // or null
  const typename Panels::Value* residual;  // or null
  int64_t tokens, x_stride, out;
};

template <typename Panels, typename Out>
void multiply_panel(const Problem<Panels>& problem, const typename Panels::Value* panel, int64_t column,
                    int64_t first_row, int64_t end_row, float* sums, Out* out) {
  const auto& kernel = tile_kernel<typename Panels::Value>();
  const int64_t width = std::min(kWidth, problem.out - column);
  for (int64_t row = first_row; row < end_row; row += kernel.max_rows) {
    const int64_t rows = std::min(kernel.max_rows, end_row - row);
    kernel.multiply({.x = problem.x + row * problem.x_stride,
                     .panel = panel,
                     .x_stride = problem.x_stride,
                     .steps = problem.panels.steps(),
                     .sums = sums},
                    rows);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (row + i) * problem.out + column;
      finish_row(sums + i * kWidth, problem.bias ? problem.bias + column : nullptr,
                 problem.residual ? problem.residual + at : nullptr, out + at, width);
    }
  }
}

template <typename Panels, typename Out>
void multiply_all(const Problem<Panels>& problem, Out* out) {
  using Value = typename Panels::Value;
  const int64_t panels = (problem.out + kWidth - 1) / kWidth;
  const int64_t macs_per_panel = std::max<int64_t>(1, problem.tokens * problem.x_stride * kWidth);
  at::parallel_for(0, panels, std::max<int64_t>(1, kGrainMacs / macs_per_panel), [&](int64_t begin, int64_t end) {
    std::vector<float> sums(static_cast<size_t>(tile_kernel<Value>().max_rows * kWidth));
    std::vector<Value> scratch;
    for (int64_t row = 0; row < problem.tokens; row += kRowBlock) {
      const int64_t end_row = std::min(problem.tokens, row + kRowBlock);
      for (int64_t i = begin; i < end; ++i) {
        multiply_panel(problem, problem.panels.panel(i, scratch), i * kWidth, row, end_row, sums.data(), out);
      }
    }
  });
}

at::Tensor packed_linear_cpu(const at::Tensor& x, const at::Tensor& panels_in, const std::optional<at::Tensor>& scales,
                             int64_t out, const std::optional<at::Tensor>& bias,
                             const std::optional<at::Tensor>& residual, at::ScalarType out_dtype) {
  const at::Tensor y = at::empty({x.size(0), out}, x.options().dtype(out_dtype));
  with_panels(panels_in, scales, [&]<typename Panels>(const Panels& panels) {
    using Value = typename Panels::Value;
    const Problem<Panels> problem{
        .x = static_cast<const Value*>(x.const_data_ptr()),
        .panels = panels,
        .bias = bias ? bias->const_data_ptr<float>() : nullptr,
        .residual = residual ? static_cast<const Value*>(residual->const_data_ptr()) : nullptr,
        .tokens = x.size(0),
        .x_stride = x.size(1),
        .out = out,
    };
    if (out_dtype == at::kFloat) {
      multiply_all(problem, y.mutable_data_ptr<float>());
    } else {
      multiply_all(problem, static_cast<Value*>(y.mutable_data_ptr()));
    }
  });
  return y;
}

at::Tensor packed_rows_cpu(const at::Tensor& panels_in, const std::optional<at::Tensor>& scales, int64_t in,
                           const at::Tensor& ids_in) {
  const at::Tensor ids = ids_in.contiguous();
  const auto* id = ids.const_data_ptr<int64_t>();
  at::Tensor rows;
  with_panels(panels_in, scales, [&]<typename Panels>(const Panels& panels) {
    using Value = typename Panels::Value;
    rows = at::empty({ids.size(0), in}, panels_in.options().dtype(sizeof(Value) == 2 ? at::kBFloat16 : at::kFloat));
    auto* out = static_cast<Value*>(rows.mutable_data_ptr());
    at::parallel_for(0, ids.size(0), 1, [&](int64_t begin, int64_t end) {
      std::vector<Value> scratch;
      for (int64_t i = begin; i < end; ++i) {
        TORCH_CHECK(id[i] >= 0 && id[i] < panels.outputs(), "packed_rows: id ", id[i], " is outside the weight");
        const Value* values = panels.panel(id[i] / kWidth, scratch);
        for (int64_t k = 0; k < in; ++k) out[i * in + k] = values[Panels::place(k, id[i] % kWidth)];
      }
    });
  });
  return rows;
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("packed_linear", packed_linear_cpu);
  library.impl("packed_rows", packed_rows_cpu);
}

}  // namespace
}  // namespace distill::kernels
