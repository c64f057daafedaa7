#include "kernels/mla_attention/fp8_entries.h"

#include <c10/util/Float8_e4m3fn.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/fp8/e4m3.h"

namespace distill::kernels {
namespace {

template <typename T>
void encode(const Fp8Entry& entry, const T* latent, const T* key, uint8_t* to) {
  for (int64_t block = 0; block < entry.scales(); ++block) {
    const int64_t first = block * kLatentScaleBlock;
    const int64_t end = std::min(first + kLatentScaleBlock, entry.rank);
    float largest = 0;
    for (int64_t i = first; i < end; ++i) largest = std::max(largest, std::abs(to_float(latent[i])));
    const float scale = largest > 0 ? largest / kLargestE4m3 : 1;
    std::memcpy(to + block * 4, &scale, sizeof(scale));
    for (int64_t i = first; i < end; ++i) {
      to[entry.latent_at() + i] = c10::detail::fp8e4m3fn_from_fp32_value(to_float(latent[i]) / scale);
    }
  }
  for (int64_t i = 0; i < entry.rope; ++i) {
    const auto value = from_float<Bf16>(to_float(key[i]));
    std::memcpy(to + entry.key_at() + i * 2, &value, sizeof(value));
  }
}

template <typename T>
[[gnu::always_inline]] inline void decode(const Fp8Entry& entry, const uint8_t* from, int64_t count, T* to) {
  for (int64_t e = 0; e < count; ++e, from += entry.bytes(), to += entry.rank + entry.rope) {
    const uint8_t* latent = from + entry.latent_at();
    for (int64_t first = 0; first < entry.rank; first += kLatentScaleBlock) {
      float scale = 0;
      std::memcpy(&scale, from + first / kLatentScaleBlock * 4, sizeof(scale));
      const int64_t end = std::min(first + kLatentScaleBlock, entry.rank);
#pragma omp simd
      for (int64_t i = first; i < end; ++i) to[i] = from_float<T>(to_float(E4m3{latent[i]}) * scale);
    }
    for (int64_t i = 0; i < entry.rope; ++i) {
      Bf16 value{};
      std::memcpy(&value, from + entry.key_at() + i * 2, sizeof(value));
      to[entry.rank + i] = from_float<T>(to_float(value));
    }
  }
}

// Overloads cannot be cloned for several instruction sets; these have names of their own.
DISTILL_MULTIVERSION void decode_to_fp32(const Fp8Entry& entry, const uint8_t* from, int64_t count, float* to) {
  decode(entry, from, count, to);
}
DISTILL_MULTIVERSION void decode_to_bf16(const Fp8Entry& entry, const uint8_t* from, int64_t count, Bf16* to) {
  decode(entry, from, count, to);
}

}  // namespace

void encode_fp8_entry(const Fp8Entry& entry, const float* latent, const float* key, uint8_t* to) {
  encode(entry, latent, key, to);
}
void encode_fp8_entry(const Fp8Entry& entry, const Bf16* latent, const Bf16* key, uint8_t* to) {
  encode(entry, latent, key, to);
}

void decode_fp8_entries(const Fp8Entry& entry, const uint8_t* from, int64_t count, float* to) {
  decode_to_fp32(entry, from, count, to);
}
void decode_fp8_entries(const Fp8Entry& entry, const uint8_t* from, int64_t count, Bf16* to) {
  decode_to_bf16(entry, from, count, to);
}

}  // namespace distill::kernels
