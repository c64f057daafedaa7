// Kernel bodies of swiglu and its gradient: a thread per output element.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/swiglu/swiglu_cuda.h"

namespace distill::kernels::cuda {

// Right for x of any size: expf overflows to infinity, whose inverse is 0.
__device__ inline float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

template <typename T>
__global__ void swiglu_kernel(SwigluArguments<T> arguments) {
  for (int64_t i = grid_thread(); i < arguments.tokens * arguments.size; i += grid_threads()) {
    const int64_t gate_at = i + i / arguments.size * arguments.size;
    const float gate = load(arguments.gate_up[gate_at]);
    const float up = load(arguments.gate_up[gate_at + arguments.size]);
    arguments.y[i] = store<T>(gate * sigmoid(gate) * up);
  }
}

// With s = sigmoid(g): d silu(g)/dg = s (1 + g (1 - s)).
template <typename T>
__global__ void swiglu_backward_kernel(SwigluBackwardArguments<T> arguments) {
  for (int64_t i = grid_thread(); i < arguments.tokens * arguments.size; i += grid_threads()) {
    const int64_t gate_at = i + i / arguments.size * arguments.size;
    const float grad = load(arguments.grad[i]);
    const float gate = load(arguments.gate_up[gate_at]);
    const float up = load(arguments.gate_up[gate_at + arguments.size]);
    const float s = sigmoid(gate);
    arguments.grad_gate_up[gate_at] = store<T>(grad * up * s * (1.0f + gate * (1.0f - s)));
    arguments.grad_gate_up[gate_at + arguments.size] = store<T>(grad * gate * s);
  }
}

}  // namespace distill::kernels::cuda
