// Kernel body that ends packed_linear: bias and residual are added to the fp32 product, which is rounded once.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/packed_linear/packed_linear_cuda.h"

namespace distill::kernels::cuda {

template <typename T, typename V>
__global__ void finish_linear_kernel(FinishLinearArguments<T, V> arguments) {
  for (int64_t i = grid_thread(); i < arguments.tokens * arguments.out; i += grid_threads()) {
    const float bias = arguments.bias != nullptr ? arguments.bias[i % arguments.out] : 0.0f;
    const float residual = arguments.residual != nullptr ? load(arguments.residual[i]) : 0.0f;
    arguments.y[i] = store<T>(arguments.product[i] + bias + residual);
  }
}

}  // namespace distill::kernels::cuda
