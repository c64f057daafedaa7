// CUDA kernels on the CPU: stands in for what a kernel body uses of the CUDA language, so that its arithmetic, indexing
// and barriers are executed and tested without a GPU. kernels/cuda/device.cuh includes it in tests.
//
// The threads of a block are fibers of one operating system thread, switched only at barriers and shuffles; blocks run
// one after the other. A kernel that forgets a barrier gives another result when threads run in the opposite order,
// so tests launch in both. Barriers that not all threads reach, and shuffles inside diverged warps, throw.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

namespace simt {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

enum class Order { kAscending, kDescending };  // in which the threads of a block take turns

// Runs `body` once for each thread of each block. `block` is a multiple of 32. Rethrows what a thread throws; throws
// std::logic_error where threads disagree about a barrier.
void run(unsigned grid, unsigned block, std::size_t shared_bytes, Order order, const std::function<void()>& body);

// Of the thread that is running.
const Dim3& thread_index();
const Dim3& block_index();
const Dim3& block_dimensions();
const Dim3& grid_dimensions();
// Filled with NaNs when a block begins.
void* dynamic_shared_memory();

void block_barrier();
// Until every lane of the warp has come here.
void warp_barrier();
// `bits` of lane `lane` of this warp, as that lane passed them to its call.
uint32_t exchange(uint32_t bits, unsigned lane);
unsigned lane_index();

}  // namespace simt

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block at a time, all its threads in one operating system thread
#define __launch_bounds__(...)
#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_dimensions())
#define gridDim (::simt::grid_dimensions())

inline void __syncthreads() {
  simt::block_barrier();
}
inline void __syncwarp(uint32_t = 0xFFFFFFFFu) {
  simt::warp_barrier();
}

template <typename T>
T __shfl_sync(uint32_t, T value, unsigned lane) {
  static_assert(sizeof(T) == sizeof(uint32_t));
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = simt::exchange(bits, lane % 32);
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, unsigned lanes) {
  return __shfl_sync(mask, value, simt::lane_index() ^ lanes);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned lanes) {
  const unsigned lane = simt::lane_index() + lanes;
  return __shfl_sync(mask, value, lane < 32 ? lane : simt::lane_index());
}

inline uint32_t __float_as_uint(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}
inline float rsqrtf(float value) {
  return 1.0f / std::sqrt(value);
}
// Ends a kernel with an error on the GPU; here an exception.
[[noreturn]] void __trap();
