#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/storage_type.h"

namespace distill::kernels {
namespace {

constexpr int64_t kGrain = 8192;  // elements worth a thread

struct HeadShape {
  int64_t heads, dim, half;
};

template <typename T>
[[gnu::always_inline]] inline void rotate(const T* x, const float* cos, const float* sin, T* y, HeadShape shape) {
  for (int64_t h = 0; h < shape.heads; ++h, x += shape.dim, y += shape.dim) {
#pragma omp simd
    for (int64_t i = 0; i < shape.half; ++i) {
      const float x1 = to_float(x[i]);
      const float x2 = to_float(x[i + shape.half]);
      y[i] = from_float<T>(x1 * cos[i] - x2 * sin[i]);
      y[i + shape.half] = from_float<T>(x2 * cos[i] + x1 * sin[i]);
    }
    std::copy(x + 2 * shape.half, x + shape.dim, y + 2 * shape.half);
  }
}

template <typename T>
void rotate_pairs(const T* x, const float* cos, const float* sin, T* y, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float x1 = to_float(x[2 * i]);
    const float x2 = to_float(x[2 * i + 1]);
    y[i] = from_float<T>(x1 * cos[i] - x2 * sin[i]);
    y[i + half] = from_float<T>(x2 * cos[i] + x1 * sin[i]);
  }
}

DISTILL_MULTIVERSION void rotate_token(const float* x, const float* cos, const float* sin, float* y, HeadShape shape) {
  rotate(x, cos, sin, y, shape);
}
DISTILL_MULTIVERSION void rotate_token(const Bf16* x, const float* cos, const float* sin, Bf16* y, HeadShape shape) {
  rotate(x, cos, sin, y, shape);
}

template <typename T>
void rotate_all(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& y) {
  const HeadShape shape{.heads = x.size(1), .dim = x.size(2), .half = cos.size(1)};
  const int64_t row = shape.heads * shape.dim;
  const auto* from = static_cast<const T*>(x.const_data_ptr());
  auto* to = static_cast<T*>(y.mutable_data_ptr());
  const float* c = cos.const_data_ptr<float>();
  const float* s = sin.const_data_ptr<float>();
  at::parallel_for(0, x.size(0), std::max<int64_t>(1, kGrain / row), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      rotate_token(from + t * x.stride(0), c + t * shape.half, s + t * shape.half, to + t * row, shape);
    }
  });
}

at::Tensor rotary_cpu(const at::Tensor& x, const at::Tensor& cos_in, const at::Tensor& sin_in) {
  const at::Tensor cos = cos_in.contiguous();
  const at::Tensor sin = sin_in.contiguous();
  const at::Tensor y = at::empty(x.sizes(), x.options());
  with_storage_type(x, "rotary", [&]<typename T>(T) { rotate_all<T>(x, cos, sin, y); });
  return y;
}

at::Tensor rotary_of_pairs_cpu(const at::Tensor& x, const at::Tensor& cos_in, const at::Tensor& sin_in) {
  const at::Tensor cos = cos_in.contiguous();
  const at::Tensor sin = sin_in.contiguous();
  const at::Tensor y = at::empty(x.sizes(), x.options());
  const int64_t heads = x.size(1);
  const int64_t half = cos.size(1);
  with_storage_type(x, "rotary_of_pairs", [&]<typename T>(T) {
    const auto* from = static_cast<const T*>(x.const_data_ptr());
    auto* to = static_cast<T*>(y.mutable_data_ptr());
    at::parallel_for(0, x.size(0), std::max<int64_t>(1, kGrain / (2 * heads * half)), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const float* c = cos.const_data_ptr<float>() + t * half;
        const float* s = sin.const_data_ptr<float>() + t * half;
        for (int64_t h = 0; h < heads; ++h) {
          rotate_pairs(from + t * x.stride(0) + h * x.stride(1), c, s, to + (t * heads + h) * 2 * half, half);
        }
      }
    });
  });
  return y;
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("rotary", rotary_cpu);
  library.impl("rotary_of_pairs", rotary_of_pairs_cpu);
}

}  // namespace
}  // namespace distill::kernels
