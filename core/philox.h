// Counter-based random numbers: what is drawn depends only on the key, never on which process draws or in what order.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace distill::core {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11). The key is `seed`; the counter
// is (document, position, draw), so each position of each document has its own stream of 2^34 numbers.
class Philox {
 public:
  Philox(uint64_t seed, uint64_t document, uint64_t position);

  uint32_t next_uint32();
  // Uniform in [0, 1) with 53 random bits.
  double next_double();
  // Uniform in [0, bound), bound > 0, without modulo bias.
  uint32_t next_below(uint32_t bound);
  // Standard normal.
  double next_normal();

 private:
  void refill();
  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 4> counter_;
  std::array<uint32_t, 4> block_{};
  unsigned used_ = 4;
};

// The ten rounds on one counter block, for kernels and tests against published vectors.
std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A 64-bit stream number for (prompt id, sample index), to key Philox with: FNV-1a, then the SplitMix64 finaliser.
uint64_t stream_id(std::string_view text, uint64_t index);

}  // namespace distill::core
