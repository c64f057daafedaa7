// Kernel body of rotary.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/rotary/rotary_cuda.h"

namespace distill::kernels::cuda {

template <typename T>
__global__ void rotary_kernel(RotaryArguments<T> arguments) {
  const int64_t half = arguments.half;
  for (int64_t item = grid_thread(); item < arguments.work(); item += grid_threads()) {
    const int64_t i = item % arguments.work_per_head();
    const int64_t head = item / arguments.work_per_head() % arguments.heads;
    const int64_t token = item / arguments.work_per_head() / arguments.heads;
    const T* x = arguments.x + token * arguments.token_stride + head * arguments.dim;
    T* y = arguments.y + (token * arguments.heads + head) * arguments.dim;
    if (i < half) {
      const float c = arguments.cos[token * half + i];
      const float s = arguments.sin[token * half + i];
      const float x1 = load(x[i]);
      const float x2 = load(x[i + half]);
      y[i] = store<T>(x1 * c - x2 * s);
      y[i + half] = store<T>(x2 * c + x1 * s);
    } else {
      y[i + half] = x[i + half];
    }
  }
}

}  // namespace distill::kernels::cuda
