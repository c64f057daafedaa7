// What kernel bodies are written with. They are compiled twice: by nvcc for GPUs, and by the tests' C++ compiler with a
// header in DISTILL_SIMT_SHIM that stands in for threads, barriers, shared memory and warp shuffles
// (tests/simt/simt.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/multiversion.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include DISTILL_SIMT_SHIM
#endif

namespace distill::kernels::cuda {

__device__ inline float load(float value) {
  return value;
}
__device__ inline float load(Bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

// To nearest, ties to even; NaN stays NaN.
template <typename T>
__device__ inline T store(float value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return value;
  } else {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return Bf16{0x7FC0u};
    return Bf16{static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
  }
}

// This thread's number in the whole grid, and how many there are: `for (i = first; i < n; i += step)`.
__device__ inline int64_t grid_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t grid_threads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

#if defined(__CUDACC__)
// The block's dynamic shared memory.
__device__ inline float* dynamic_shared() {
  extern __shared__ float shared[];
  return shared;
}
#else
inline float* dynamic_shared() {
  return static_cast<float*>(simt::dynamic_shared_memory());
}
#endif

struct Sum {
  static constexpr float kIdentity = 0.0f;
  __device__ static float combine(float a, float b) { return a + b; }
};
struct Maximum {
  static constexpr float kIdentity = -3.402823466e38f;
  __device__ static float combine(float a, float b) { return fmaxf(a, b); }
};

// `value` of every thread of the block combined, in an order that depends on the block's size alone; the same bits in
// every thread. All threads of the block must call it.
template <typename Operation>
__device__ inline float reduce_block(float value) {
  constexpr unsigned kMaxWarps = 1024 / kWarpSize;
  __shared__ float of_warp[kMaxWarps];
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = Operation::combine(value, __shfl_xor_sync(0xFFFFFFFFu, value, offset));
  }
  if (threadIdx.x % kWarpSize == 0) of_warp[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  float result = Operation::kIdentity;
  for (unsigned warp = 0; warp < blockDim.x / kWarpSize; ++warp) result = Operation::combine(result, of_warp[warp]);
  __syncthreads();  // before the next call writes of_warp
  return result;
}

}  // namespace distill::kernels::cuda
