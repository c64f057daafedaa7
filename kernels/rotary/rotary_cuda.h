// What the host hands to the CUDA kernel of rotary. T is float or Bf16.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/multiversion.h"

using cudaStream_t = struct CUstream_st*;

namespace distill::kernels::cuda {

template <typename T>
struct RotaryArguments {
  const T* x;        // [tokens, heads, dim], tokens `token_stride` elements apart
  const float* cos;  // [tokens, half]
  const float* sin;  // [tokens, half]
  T* y;              // [tokens, heads, dim]
  int64_t tokens, heads, dim, half, token_stride;

  // A thread turns one pair of a head or passes one element of its rest through.
  constexpr int64_t work_per_head() const { return dim - half; }
  constexpr int64_t work() const { return tokens * heads * work_per_head(); }
};

template <typename T>
void launch_rotary(const RotaryArguments<T>& arguments, cudaStream_t stream);

}  // namespace distill::kernels::cuda
