// What the host hands to the CUDA kernels of rms_norm. T is float or Bf16.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/multiversion.h"
#include "kernels/rms_norm/row_layout.h"

using cudaStream_t = struct CUstream_st*;

namespace distill::kernels::cuda {

template <typename T>
struct RmsNormArguments {
  const T* x;           // rows as `layout` says
  const float* weight;  // [size]
  T* y;                 // [rows, size]
  RowLayout layout;
  float eps;
};

// A block per row.
template <typename T>
LaunchShape rms_norm_shape(const RmsNormArguments<T>& arguments) {
  return {.grid = static_cast<unsigned>(arguments.layout.rows()), .block = threads_for(arguments.layout.size)};
}

template <typename T>
struct RmsNormBackwardArguments {
  const T* grad;        // [rows, size]
  const T* x;           // rows as `layout` says
  const float* weight;  // [size]
  T* grad_x;            // [rows, size]
  float* grad_weight;   // [parts, size]: what each part of the rows contributes
  RowLayout layout;
  float eps;
};

// Row ranges with a partial sum each. Fixed, so that the sum's order does not depend on the GPU.
inline constexpr int64_t kRmsNormParts = 128;

// A block per part.
template <typename T>
LaunchShape rms_norm_backward_shape(const RmsNormBackwardArguments<T>& arguments) {
  return {.grid = kRmsNormParts, .block = threads_for(arguments.layout.size)};
}

template <typename T>
void launch_rms_norm(const RmsNormArguments<T>& arguments, cudaStream_t stream);
template <typename T>
void launch_rms_norm_backward(const RmsNormBackwardArguments<T>& arguments, cudaStream_t stream);

}  // namespace distill::kernels::cuda
