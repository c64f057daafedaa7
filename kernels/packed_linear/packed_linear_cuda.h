// What the host hands to the CUDA kernel that ends packed_linear. V is the type of the weight's values, float or Bf16,
// T the result's: float or V.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/multiversion.h"

using cudaStream_t = struct CUstream_st*;

namespace distill::kernels::cuda {

template <typename T, typename V>
struct FinishLinearArguments {
  const float* product;  // [tokens, out] x w^T
  const float* bias;     // [out] or null
  const V* residual;     // [tokens, out] or null
  T* y;                  // [tokens, out]
  int64_t tokens, out;
};

template <typename T, typename V>
void launch_finish_linear(const FinishLinearArguments<T, V>& arguments, cudaStream_t stream);

}  // namespace distill::kernels::cuda
