// How a kernel is launched, as a value: a pure function of the arguments' shapes, so that tests can check it and the
// SIMT shim can use it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace distill::kernels::cuda {

struct LaunchShape {
  unsigned grid = 1;             // blocks
  unsigned block = 1;            // threads of a block, a multiple of kWarpSize
  std::size_t shared_bytes = 0;  // dynamic shared memory of a block
};

inline constexpr unsigned kWarpSize = 32;
inline constexpr unsigned kMaxBlock = 256;  // threads: enough to hide latency, few enough for a register file

// Threads for work on `size` neighbouring elements: whole warps, at most kMaxBlock.
constexpr unsigned threads_for(int64_t size) {
  const int64_t warps = std::max<int64_t>(1, (size + kWarpSize - 1) / kWarpSize);
  return static_cast<unsigned>(std::min<int64_t>(kMaxBlock, warps * kWarpSize));
}

// One thread per element up to a bound; the kernel strides over the rest.
constexpr LaunchShape elementwise(int64_t elements) {
  constexpr int64_t kMaxGrid = 65536;
  const int64_t blocks = (elements + kMaxBlock - 1) / kMaxBlock;
  return {.grid = static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, kMaxGrid)), .block = kMaxBlock};
}

}  // namespace distill::kernels::cuda
