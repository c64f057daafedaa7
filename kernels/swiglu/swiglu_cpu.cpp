#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "kernels/storage_type.h"

namespace distill::kernels {
namespace {

constexpr int64_t kGrain = 8192;  // elements worth a thread

template <typename T>
[[gnu::always_inline]] inline void gate(const T* g, const T* u, T* y, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float x = to_float(g[i]);
    y[i] = from_float<T>(x / (1.0f + vector_exp(-x)) * to_float(u[i]));
  }
}

// With s = sigmoid(g): d silu(g)/dg = s (1 + g (1 - s)).
template <typename T>
[[gnu::always_inline]] inline void differentiate(const T* grad, const T* g, const T* u, T* grad_g, T* grad_u,
                                                 int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float x = to_float(g[i]);
    const float dy = to_float(grad[i]);
    const float s = 1.0f / (1.0f + vector_exp(-x));
    grad_g[i] = from_float<T>(dy * to_float(u[i]) * s * (1.0f + x * (1.0f - s)));
    grad_u[i] = from_float<T>(dy * x * s);
  }
}

DISTILL_MULTIVERSION void gate_row(const float* g, const float* u, float* y, int64_t size) {
  gate(g, u, y, size);
}
DISTILL_MULTIVERSION void gate_row(const Bf16* g, const Bf16* u, Bf16* y, int64_t size) {
  gate(g, u, y, size);
}
DISTILL_MULTIVERSION void differentiate_row(const float* grad, const float* g, const float* u, float* grad_g,
                                            float* grad_u, int64_t size) {
  differentiate(grad, g, u, grad_g, grad_u, size);
}
DISTILL_MULTIVERSION void differentiate_row(const Bf16* grad, const Bf16* g, const Bf16* u, Bf16* grad_g, Bf16* grad_u,
                                            int64_t size) {
  differentiate(grad, g, u, grad_g, grad_u, size);
}

at::Tensor swiglu_cpu(const at::Tensor& gate_up) {
  const int64_t tokens = gate_up.size(0);
  const int64_t size = gate_up.size(1) / 2;
  const at::Tensor y = at::empty({tokens, size}, gate_up.options());
  with_storage_type(gate_up, "swiglu", [&]<typename T>(T) {
    const auto* from = static_cast<const T*>(gate_up.const_data_ptr());
    auto* to = static_cast<T*>(y.mutable_data_ptr());
    at::parallel_for(0, tokens, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        gate_row(from + 2 * t * size, from + (2 * t + 1) * size, to + t * size, size);
    });
  });
  return y;
}

at::Tensor swiglu_backward_cpu(const at::Tensor& grad, const at::Tensor& gate_up) {
  const int64_t tokens = gate_up.size(0);
  const int64_t size = gate_up.size(1) / 2;
  const at::Tensor grad_gate_up = at::empty_like(gate_up);
  with_storage_type(gate_up, "swiglu", [&]<typename T>(T) {
    const auto* dy = static_cast<const T*>(grad.const_data_ptr());
    const auto* from = static_cast<const T*>(gate_up.const_data_ptr());
    auto* to = static_cast<T*>(grad_gate_up.mutable_data_ptr());
    at::parallel_for(0, tokens, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t gate_at = 2 * t * size;
        const int64_t up_at = gate_at + size;
        differentiate_row(dy + t * size, from + gate_at, from + up_at, to + gate_at, to + up_at, size);
      }
    });
  });
  return grad_gate_up;
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("swiglu", swiglu_cpu);
  library.impl("swiglu_backward", swiglu_backward_cpu);
}

}  // namespace
}  // namespace distill::kernels
