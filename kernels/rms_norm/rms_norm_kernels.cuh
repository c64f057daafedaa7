// Kernel bodies of rms_norm and its gradient: a block works on one row at a time.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/rms_norm/rms_norm_cuda.h"

namespace distill::kernels::cuda {

template <typename T>
__device__ inline float inverse_rms(const T* x, int64_t size, float eps) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) sum += load(x[i]) * load(x[i]);
  return rsqrtf(reduce_block<Sum>(sum) / static_cast<float>(size) + eps);
}

template <typename T>
__global__ void rms_norm_kernel(RmsNormArguments<T> arguments) {
  const int64_t size = arguments.layout.size;
  const T* x = arguments.x + arguments.layout.offset(blockIdx.x);
  T* y = arguments.y + blockIdx.x * size;
  const float scale = inverse_rms(x, size, arguments.eps);
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) y[i] = store<T>(load(x[i]) * scale * arguments.weight[i]);
}

// dx = s (w g - x s^2 / n * sum(w g x)), dw = sum over rows of g x s, with s the inverse root mean square.
template <typename T>
__global__ void rms_norm_backward_kernel(RmsNormBackwardArguments<T> arguments) {
  const int64_t size = arguments.layout.size;
  const int64_t rows = arguments.layout.rows();
  float* grad_weight = arguments.grad_weight + blockIdx.x * size;
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) grad_weight[i] = 0;
  for (int64_t row = blockIdx.x * rows / gridDim.x; row < (blockIdx.x + 1) * rows / gridDim.x; ++row) {
    const T* x = arguments.x + arguments.layout.offset(row);
    const T* grad = arguments.grad + row * size;
    const float scale = inverse_rms(x, size, arguments.eps);
    float dot = 0;
    for (int64_t i = threadIdx.x; i < size; i += blockDim.x) dot += arguments.weight[i] * load(grad[i]) * load(x[i]);
    const float correction = reduce_block<Sum>(dot) * scale * scale / static_cast<float>(size);
    for (int64_t i = threadIdx.x; i < size; i += blockDim.x) {
      const float g = load(grad[i]);
      const float value = load(x[i]);
      arguments.grad_x[row * size + i] = store<T>(scale * (arguments.weight[i] * g - value * correction));
      grad_weight[i] += g * value * scale;  // column i belongs to this thread alone
    }
  }
}

}  // namespace distill::kernels::cuda
