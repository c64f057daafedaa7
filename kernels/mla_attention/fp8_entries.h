// How a latent cache holds a token in FP8: its latent as e4m3 with one fp32 scale per 128 values, its rotary key, which
// rounding hurts more, in bf16. For DeepSeek-V3 that is 656 bytes where bf16 takes 1152.
//
//   [scales: ceil(rank / 128) fp32] [key: rope bf16] [latent: rank e4m3] [up to 3 bytes to whole words]
#pragma once

#include <cstdint>

#include "kernels/multiversion.h"

namespace distill::kernels {

inline constexpr int64_t kLatentScaleBlock = 128;

struct Fp8Entry {
  int64_t rank = 0;
  int64_t rope = 0;

  int64_t scales() const { return (rank + kLatentScaleBlock - 1) / kLatentScaleBlock; }
  int64_t key_at() const { return scales() * 4; }
  int64_t latent_at() const { return key_at() + rope * 2; }
  int64_t bytes() const { return (latent_at() + rank + 3) / 4 * 4; }
};

// Writes latent [rank] and key [rope]. A block's scale makes its largest magnitude 448, e4m3's largest.
void encode_fp8_entry(const Fp8Entry& entry, const float* latent, const float* key, uint8_t* to);
void encode_fp8_entry(const Fp8Entry& entry, const Bf16* latent, const Bf16* key, uint8_t* to);

// Reads `count` entries, one after the other in memory, as [count, rank + rope]: latent, then key.
void decode_fp8_entries(const Fp8Entry& entry, const uint8_t* from, int64_t count, float* to);
void decode_fp8_entries(const Fp8Entry& entry, const uint8_t* from, int64_t count, Bf16* to);

}  // namespace distill::kernels
