#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "kernels/packed_linear/block_kernel.h"
#include "kernels/packed_linear/block_weight.h"
#include "kernels/packed_linear/packed_linear.h"
#include "kernels/packed_linear/tile_kernel.h"
#include "kernels/scratch.h"

namespace distill::kernels {
namespace {

constexpr int64_t kWidth = kPanelWidth;
constexpr int64_t kRowBytes = 1 << 18;  // of x, kept in the second-level cache while the panels pass by
constexpr int64_t kGrainMacs = 32768;   // multiply-adds worth a thread

// Where the sums of some rows go.
template <typename Value, typename Out>
struct Output {
  const float* bias;      // or null
  const Value* residual;  // or null
  Out* out;
  int64_t stride;  // of residual and out
};

// Writes `rows` rows of sums [rows, 32], the first `width` of each.
template <typename Value, typename Out>
[[gnu::always_inline]] inline void finish(const float* sums, int64_t rows, int64_t width, Output<Value, Out> to) {
  for (int64_t row = 0; row < rows; ++row, sums += kWidth, to.out += to.stride) {
    float values[kWidth];
    std::copy_n(sums, kWidth, values);
    if (to.bias) {
      for (int64_t j = 0; j < width; ++j) values[j] += to.bias[j];
    }
    if (to.residual) {
      for (int64_t j = 0; j < width; ++j) values[j] += to_float(to.residual[j]);
      to.residual += to.stride;
    }
    for (int64_t j = 0; j < width; ++j) to.out[j] = from_float<Out>(values[j]);
  }
}

template <typename Value, typename Out>
[[gnu::always_inline]] inline void finish_any(const float* sums, int64_t rows, int64_t width,
                                              const Output<Value, Out>& to) {
  width == kWidth ? finish(sums, rows, kWidth, to) : finish(sums, rows, width, to);
}

DISTILL_MULTIVERSION void finish_rows(const float* sums, int64_t rows, int64_t width, const Output<float, float>& to) {
  finish_any(sums, rows, width, to);
}
DISTILL_MULTIVERSION void finish_rows(const float* sums, int64_t rows, int64_t width, const Output<Bf16, float>& to) {
  finish_any(sums, rows, width, to);
}
DISTILL_MULTIVERSION void finish_rows(const float* sums, int64_t rows, int64_t width, const Output<Bf16, Bf16>& to) {
  finish_any(sums, rows, width, to);
}

// The panels of a weight whose values count as bf16, whatever they are stored in.
class Bf16Panels {
 public:
  using Value = Bf16;

  Bf16Panels(const at::Tensor& panels, const std::optional<at::Tensor>& scales) : panels_(panels) {
    if (scales) scales_ = *scales;
  }

  bool in_blocks() const { return scales_.defined(); }
  // Pairs of inputs, and inputs.
  int64_t steps() const { return in_blocks() ? panels_.size(1) * kPairAlignment : panels_.size(1); }
  int64_t width() const { return 2 * steps(); }
  int64_t outputs() const { return panels_.size(0) * kWidth; }
  // Values that panel() may need room for.
  int64_t scratch_size() const { return in_blocks() ? steps() * kWidth * 2 : 0; }
  // The values of one panel [steps, 32, 2], decoded into `scratch` if they aren't stored as such.
  const Bf16* panel(int64_t index, Bf16* scratch) const {
    if (!in_blocks()) return static_cast<const Bf16*>(panels_.const_data_ptr()) + index * steps() * kWidth * 2;
    decode_panel(blocks(index), scratch);
    return scratch;
  }
  BlockPanel blocks(int64_t index) const {
    return {.codes = static_cast<const char*>(panels_.const_data_ptr()) + index * panels_.stride(0),
            .scales = static_cast<const uint16_t*>(scales_.const_data_ptr()) + index * scales_.stride(0),
            .blocks = panels_.size(1),
            .four_bits = panels_.scalar_type() == at::kByte,
            .has_mins = scales_.size(2) == 2};
  }
  // All inputs, width() of them, of one output.
  void row(int64_t output, Bf16* out) const {
    if (in_blocks()) return decode_row(blocks(output / kWidth), output % kWidth, out);
    const Bf16* values = panel(output / kWidth, nullptr) + output % kWidth * 2;
    for (int64_t k = 0; k < width(); ++k) out[k] = values[k / 2 * kWidth * 2 + k % 2];
  }

 private:
  at::Tensor panels_;
  at::Tensor scales_;
};

// The same of a weight in fp32 [steps, 32], a step for each input.
class Fp32Panels {
 public:
  using Value = float;

  explicit Fp32Panels(const at::Tensor& panels) : panels_(panels) {}

  int64_t steps() const { return panels_.size(1); }
  int64_t width() const { return steps(); }
  int64_t outputs() const { return panels_.size(0) * kWidth; }
  int64_t scratch_size() const { return 0; }
  const float* panel(int64_t index, float* /*scratch*/) const {
    return panels_.const_data_ptr<float>() + index * steps() * kWidth;
  }
  void row(int64_t output, float* out) const {
    const float* values = panel(output / kWidth, nullptr) + output % kWidth;
    for (int64_t k = 0; k < width(); ++k) out[k] = values[k * kWidth];
  }

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

// Added: what the residual consists of.
template <typename Panels, typename Out, typename Added = typename Panels::Value>
struct Problem {
  using Value = typename Panels::Value;

  const Value* x;  // [tokens, x_stride]
  const Panels& panels;
  const float* bias;      // or null
  const Added* residual;  // or null; laid out like y
  Out* y;                 // [tokens, out], rows `y_stride` apart
  int64_t tokens, x_stride, out, y_stride;

  // Lets the lines that finish() reads and writes come from memory while products are computed: half of its time.
  void prepare(int64_t row, int64_t rows, int64_t panel) const {
    for (int64_t at = row * y_stride + panel * kWidth; rows > 0; --rows, at += y_stride) {
      __builtin_prefetch(y + at, 1);
      if (residual) __builtin_prefetch(residual + at);
    }
  }
  // Writes the sums [rows, 32] of one panel.
  void finish(const float* sums, int64_t row, int64_t rows, int64_t panel) const {
    const int64_t column = panel * kWidth;
    const int64_t at = row * y_stride + column;
    finish_rows(sums, rows, std::min(kWidth, out - column),
                Output<Added, Out>{.bias = bias ? bias + column : nullptr,
                                   .residual = residual ? residual + at : nullptr,
                                   .out = y + at,
                                   .stride = y_stride});
  }
};

// Panels [begin, end) against all rows, a cacheful of rows at a time.
template <typename Panels, typename Out, typename Added>
void multiply_panels(const Problem<Panels, Out, Added>& problem, int64_t begin, int64_t end) {
  using Value = typename Panels::Value;
  const auto& kernel = tile_kernel<Value>();
  const int64_t row_bytes = problem.x_stride * static_cast<int64_t>(sizeof(Value));
  const int64_t block = (kRowBytes / row_bytes / kernel.max_rows + 1) * kernel.max_rows;
  Scratch<float> sums(kernel.max_rows * kWidth);
  Scratch<Value> scratch(problem.panels.scratch_size());
  for (int64_t first = 0; first < problem.tokens; first += block) {
    for (int64_t i = begin; i < end; ++i) {
      const Value* panel = problem.panels.panel(i, scratch.data());
      const int64_t last = std::min(problem.tokens, first + block);
      for (int64_t row = first; row < last; row += kernel.max_rows) {
        const int64_t rows = std::min(kernel.max_rows, last - row);
        problem.prepare(row, rows, i);
        kernel.multiply({.x = problem.x + row * problem.x_stride,
                         .panel = panel,
                         .x_stride = problem.x_stride,
                         .steps = problem.panels.steps(),
                         .sums = sums.data()},
                        rows);
        problem.finish(sums.data(), row, rows, i);
      }
    }
  }
}

// The same for a few rows, which aren't worth decoded panels in memory.
template <typename Out, typename Added>
void multiply_blocks(const Problem<Bf16Panels, Out, Added>& problem, const BlockKernel& kernel, int64_t begin,
                     int64_t end) {
  const int64_t blocks = problem.x_stride / kBlockInputs;
  Scratch<float> sums(kMaxBlockRows * kWidth);
  Scratch<Bf16> buffer(arranged_size(blocks));
  const Bf16* x = kernel.arrange(problem.x, problem.x_stride, problem.tokens, blocks, buffer.data());
  kernel.begin(problem.tokens);
  for (int64_t i = begin; i < end; ++i) {
    kernel.multiply(problem.panels.blocks(i), x, problem.tokens, sums.data());
    problem.finish(sums.data(), 0, problem.tokens, i);
  }
  kernel.end();
}

template <typename Panels, typename Out, typename Added>
void multiply_all(const Problem<Panels, Out, Added>& problem) {
  const int64_t panels = (problem.out + kWidth - 1) / kWidth;
  const int64_t macs_per_panel = std::max<int64_t>(1, problem.tokens * problem.x_stride * kWidth);
  at::parallel_for(0, panels, std::max<int64_t>(1, kGrainMacs / macs_per_panel), [&](int64_t begin, int64_t end) {
    if constexpr (std::is_same_v<Panels, Bf16Panels>) {
      const BlockKernel* kernel = block_kernel();
      if (kernel != nullptr && problem.panels.in_blocks() && problem.tokens <= kMaxBlockRows) {
        return multiply_blocks(problem, *kernel, begin, end);
      }
    }
    multiply_panels(problem, begin, end);
  });
}

at::Tensor packed_linear_cpu(const at::Tensor& x, const at::Tensor& panels_in, const std::optional<at::Tensor>& scales,
                             int64_t out, const std::optional<at::Tensor>& bias,
                             const std::optional<at::Tensor>& residual, at::ScalarType out_dtype) {
  const at::Tensor y = at::empty({x.size(0), out}, x.options().dtype(out_dtype));
  with_panels(panels_in, scales, [&]<typename Panels>(const Panels& panels) {
    using Value = typename Panels::Value;
    const auto multiply = [&]<typename Out>(Out* to) {
      multiply_all(Problem<Panels, Out>{
          .x = static_cast<const Value*>(x.const_data_ptr()),
          .panels = panels,
          .bias = bias ? bias->const_data_ptr<float>() : nullptr,
          .residual = residual ? static_cast<const Value*>(residual->const_data_ptr()) : nullptr,
          .y = to,
          .tokens = x.size(0),
          .x_stride = x.size(1),
          .out = out,
          .y_stride = out,
      });
    };
    if (out_dtype == at::kFloat) {
      multiply(y.mutable_data_ptr<float>());
    } else {
      multiply(static_cast<Value*>(y.mutable_data_ptr()));
    }
  });
  return y;
}

}  // namespace

void packed_linear_into(const at::Tensor& y, const at::Tensor& x, const PackedWeight& weight, bool add) {
  TORCH_CHECK(x.dim() == 2 && x.size(1) == weight.in && x.is_contiguous() && x.scalar_type() == value_type(weight) &&
                  x.is_cpu(),
              "packed_linear_into: x must be ", value_type(weight), " [tokens, ", weight.in,
              "] and contiguous on the CPU, is ", x.scalar_type(), " ", x.sizes());
  TORCH_CHECK(y.dim() == 2 && y.size(0) == x.size(0) && y.size(1) == weight.out && y.stride(1) == 1 &&
                  y.scalar_type() == at::kFloat,
              "packed_linear_into: y must be fp32 [", x.size(0), ", ", weight.out, "], is ", y.scalar_type(), " ",
              y.sizes());
  auto* const to = y.mutable_data_ptr<float>();
  with_panels(weight.panels, weight.scales, [&]<typename Panels>(const Panels& panels) {
    const int64_t missing = panels.width() - x.size(1);
    const at::Tensor padded = missing == 0 ? x : at::constant_pad_nd(x, {0, missing});
    multiply_all(Problem<Panels, float, float>{
        .x = static_cast<const typename Panels::Value*>(padded.const_data_ptr()),
        .panels = panels,
        .bias = nullptr,
        .residual = add ? to : nullptr,
        .y = to,
        .tokens = x.size(0),
        .x_stride = padded.size(1),
        .out = weight.out,
        .y_stride = y.stride(0),
    });
  });
}

namespace {

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
      std::vector<Value> row(static_cast<size_t>(panels.width()));
      for (int64_t i = begin; i < end; ++i) {
        TORCH_CHECK(id[i] >= 0 && id[i] < panels.outputs(), "packed_rows: id ", id[i], " is outside the weight");
        panels.row(id[i], row.data());
        std::copy(row.begin(), row.begin() + in, out + i * in);
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
