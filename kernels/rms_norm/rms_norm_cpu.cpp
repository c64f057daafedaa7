#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>

#include "kernels/rms_norm/row_layout.h"
#include "kernels/storage_type.h"

namespace distill::kernels {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth a thread

template <typename T>
[[gnu::always_inline]] inline float inverse_rms(const T* x, int64_t size, float eps) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += to_float(x[i]) * to_float(x[i]);
  return 1.0f / std::sqrt(sum / static_cast<float>(size) + eps);
}

template <typename T>
[[gnu::always_inline]] inline void normalise(const T* x, const float* weight, T* y, int64_t size, float eps) {
  const float scale = inverse_rms(x, size, eps);
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) y[i] = from_float<T>(to_float(x[i]) * scale * weight[i]);
}

// dx = s (w g - x s^2 / n * sum(w g x)), dw += g x s, with s the inverse root mean square.
template <typename T>
[[gnu::always_inline]] inline void differentiate(const T* grad, const T* x, const float* weight, T* grad_x,
                                                 float* grad_weight, int64_t size, float eps) {
  const float scale = inverse_rms(x, size, eps);
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < size; ++i) dot += weight[i] * to_float(grad[i]) * to_float(x[i]);
  const float correction = dot * scale * scale / static_cast<float>(size);
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float g = to_float(grad[i]);
    const float value = to_float(x[i]);
    grad_x[i] = from_float<T>(scale * (weight[i] * g - value * correction));
    grad_weight[i] += g * value * scale;
  }
}

DISTILL_MULTIVERSION void normalise_row(const float* x, const float* weight, float* y, int64_t size, float eps) {
  normalise(x, weight, y, size, eps);
}
DISTILL_MULTIVERSION void normalise_row(const Bf16* x, const float* weight, Bf16* y, int64_t size, float eps) {
  normalise(x, weight, y, size, eps);
}
DISTILL_MULTIVERSION void differentiate_row(const float* grad, const float* x, const float* weight, float* grad_x,
                                            float* grad_weight, int64_t size, float eps) {
  differentiate(grad, x, weight, grad_x, grad_weight, size, eps);
}
DISTILL_MULTIVERSION void differentiate_row(const Bf16* grad, const Bf16* x, const float* weight, Bf16* grad_x,
                                            float* grad_weight, int64_t size, float eps) {
  differentiate(grad, x, weight, grad_x, grad_weight, size, eps);
}

at::Tensor rms_norm_cpu(const at::Tensor& x_in, const at::Tensor& weight, double eps) {
  const at::Tensor x = with_contiguous_rows(x_in);
  const at::Tensor weight_fp32 = weight.to(at::kFloat).contiguous();
  const at::Tensor y = at::empty(x.sizes(), x.options());
  const RowLayout layout = RowLayout::of(x);
  with_storage_type(x, "rms_norm", [&]<typename T>(T) {
    const auto* from = static_cast<const T*>(x.const_data_ptr());
    auto* to = static_cast<T*>(y.mutable_data_ptr());
    const float* w = weight_fp32.const_data_ptr<float>();
    at::parallel_for(0, layout.rows(), std::max<int64_t>(1, kGrain / layout.size), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        normalise_row(from + layout.offset(row), w, to + row * layout.size, layout.size, static_cast<float>(eps));
      }
    });
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward_cpu(const at::Tensor& grad, const at::Tensor& x_in,
                                                         const at::Tensor& weight, double eps) {
  const at::Tensor x = with_contiguous_rows(x_in);
  const at::Tensor weight_fp32 = weight.to(at::kFloat).contiguous();
  const at::Tensor grad_x = at::empty(x.sizes(), x.options());
  const RowLayout layout = RowLayout::of(x);
  // A fixed number of row ranges, each with its own partial sum, keeps dw independent of the thread count.
  constexpr int64_t kParts = 16;
  const at::Tensor partial = at::zeros({kParts, layout.size}, at::kFloat);
  with_storage_type(x, "rms_norm", [&]<typename T>(T) {
    const auto* g = static_cast<const T*>(grad.const_data_ptr());
    const auto* from = static_cast<const T*>(x.const_data_ptr());
    auto* to = static_cast<T*>(grad_x.mutable_data_ptr());
    const float* w = weight_fp32.const_data_ptr<float>();
    auto* sums = partial.mutable_data_ptr<float>();
    at::parallel_for(0, kParts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        for (int64_t row = part * layout.rows() / kParts; row < (part + 1) * layout.rows() / kParts; ++row) {
          differentiate_row(g + row * layout.size, from + layout.offset(row), w, to + row * layout.size,
                            sums + part * layout.size, layout.size, static_cast<float>(eps));
        }
      }
    });
  });
  return {grad_x, partial.sum(0).to(weight.scalar_type())};
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("rms_norm", rms_norm_cpu);
  library.impl("rms_norm_backward", rms_norm_backward_cpu);
}

}  // namespace
}  // namespace distill::kernels
