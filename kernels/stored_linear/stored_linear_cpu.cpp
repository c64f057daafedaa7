#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/storage_type.h"
#include "kernels/stored_linear/row_products.h"
#include "kernels/work_sharing.h"

namespace distill::kernels {
namespace {

constexpr int64_t kTokensPerPart = 96;  // activations that stay in cache while the rows of an item pass by

WeightRows rows_of(const at::Tensor& values, const std::optional<at::Tensor>& scales) {
  return WeightRows::of({.values = values, .scales = scales.value_or(at::Tensor())});
}

// x [rows, in] with `stride` elements from row to row.
template <typename T>
ActivationRows prepare(const T* x, int64_t rows, int64_t in, int64_t stride, RowIsa isa, WeightType type) {
  ActivationRows result(rows, in, isa, type);
  at::parallel_for(0, rows, std::max<int64_t>(1, 32768 / std::max<int64_t>(1, in)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) result.set(row, x + row * stride);
  });
  return result;
}

template <typename In, typename Out>
struct Finish {
  const float* bias;   // [out] or null
  const In* residual;  // [tokens, out] or null
  Out* y;              // [tokens, out]
  int64_t out;

  void operator()(int64_t token, int64_t first_row, int64_t rows, const float* sums) const {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = token * out + first_row + r;
      float sum = sums[r];
      if (bias) sum += bias[first_row + r];
      if (residual) sum += to_float(residual[at]);
      y[at] = from_float<Out>(sum);
    }
  }
};

// Calls finish(token, first_row, rows, sums) for every token and range of weight rows. `x` holds all tokens in order.
template <typename FinishRows>
void multiply_all(const WeightRows& weights, int64_t out, const std::vector<ActivationRows>& x,
                  const FinishRows& finish) {
  int64_t tokens = 0;
  for (const ActivationRows& part : x) tokens += part.rows();
  const int64_t chunk = rows_per_item(out);
  share_work((out + chunk - 1) / chunk, tokens * out * weights.in, [&](int64_t item) {
    const int64_t first = item * chunk;
    const int64_t rows = std::min(chunk, out - first);
    std::vector<float> sums(static_cast<size_t>(x.front().rows() * rows));
    int64_t token = 0;
    for (const ActivationRows& part : x) {
      multiply_rows(weights, first, rows, part, sums.data(), rows);
      for (int64_t i = 0; i < part.rows(); ++i, ++token) finish(token, first, rows, sums.data() + i * rows);
    }
  });
}

template <typename T>
const T* data_or_null(const std::optional<at::Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

at::Tensor stored_linear_cpu(const at::Tensor& x, const at::Tensor& values, const std::optional<at::Tensor>& scales,
                             const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual,
                             at::ScalarType out_dtype) {
  const WeightRows weights = rows_of(values, scales);
  const int64_t out = values.size(0);
  const at::Tensor y = at::empty({x.size(0), out}, x.options().dtype(out_dtype));
  if (x.size(0) == 0) return y;
  with_storage_type(x, "stored_linear", [&]<typename In>(In) {
    std::vector<ActivationRows> activations;
    for (int64_t t = 0; t < x.size(0); t += kTokensPerPart) {
      activations.push_back(prepare(static_cast<const In*>(x.const_data_ptr()) + t * weights.in,
                                    std::min(kTokensPerPart, x.size(0) - t), weights.in, weights.in,
                                    best_row_isa(x.scalar_type(), weights.type), weights.type));
    }
    with_storage_type(y, "stored_linear", [&]<typename Out>(Out) {
      multiply_all(weights, out, activations,
                   Finish<In, Out>{.bias = data_or_null<float>(bias),
                                   .residual = data_or_null<In>(residual),
                                   .y = static_cast<Out*>(y.mutable_data_ptr()),
                                   .out = out});
    });
  });
  return y;
}

at::Tensor head_linear_cpu(const at::Tensor& x, const at::Tensor& values, const std::optional<at::Tensor>& scales,
                           int64_t first, int64_t stride, int64_t rows) {
  const WeightRows weights = rows_of(values, scales);
  const int64_t tokens = x.size(0);
  const int64_t heads = x.size(1);
  const at::Tensor y = at::empty({tokens, heads, rows}, x.options());
  const RowIsa isa = best_row_isa(x.scalar_type(), weights.type);
  // Whole heads where these are enough to keep all threads busy.
  const int64_t chunk = heads >= 4 * at::get_num_threads() ? rows : std::min(rows, rows_per_item(heads * rows));
  const int64_t chunks = (rows + chunk - 1) / chunk;
  with_storage_type(x, "head_linear", [&]<typename T>(T) {
    const auto* from = static_cast<const T*>(x.const_data_ptr());
    auto* to = static_cast<T*>(y.mutable_data_ptr());
    share_work(heads * chunks, tokens * heads * rows * weights.in, [&](int64_t item) {
      const int64_t head = item / chunks;
      const int64_t row = item % chunks * chunk;
      const int64_t count = std::min(chunk, rows - row);
      const ActivationRows prepared =
          prepare(from + head * x.stride(1), tokens, weights.in, x.stride(0), isa, weights.type);
      std::vector<float> sums(static_cast<size_t>(tokens * count));
      multiply_rows(weights, first + head * stride + row, count, prepared, sums.data(), count);
      for (int64_t t = 0; t < tokens; ++t) {
        T* at = to + (t * heads + head) * rows + row;
        for (int64_t r = 0; r < count; ++r) at[r] = from_float<T>(sums[static_cast<size_t>(t * count + r)]);
      }
    });
  });
  return y;
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("stored_linear", stored_linear_cpu);
  library.impl("head_linear", head_linear_cpu);
}

}  // namespace
}  // namespace distill::kernels
