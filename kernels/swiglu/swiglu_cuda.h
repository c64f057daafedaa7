// What the host hands to the CUDA kernels of swiglu. T is float or Bf16.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/multiversion.h"

using cudaStream_t = struct CUstream_st*;

namespace distill::kernels::cuda {

template <typename T>
struct SwigluArguments {
  const T* gate_up;  // [tokens, 2 * size] = [gate | up]
  T* y;              // [tokens, size]
  int64_t tokens, size;
};

template <typename T>
struct SwigluBackwardArguments {
  const T* grad;     // [tokens, size]
  const T* gate_up;  // [tokens, 2 * size]
  T* grad_gate_up;   // [tokens, 2 * size]
  int64_t tokens, size;
};

template <typename T>
void launch_swiglu(const SwigluArguments<T>& arguments, cudaStream_t stream);
template <typename T>
void launch_swiglu_backward(const SwigluBackwardArguments<T>& arguments, cudaStream_t stream);

}  // namespace distill::kernels::cuda
