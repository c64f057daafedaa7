// FP8 in the e4m3fn format (Micikevicius et al. 2022, "FP8 formats for deep learning"): sign, 4 exponent bits with bias
// 7, 3 mantissa bits, no infinities, 0x7F and 0xFF are NaN. Every value is exact in bf16.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace distill::kernels {

inline constexpr float kLargestE4m3 = 448;

// One value in storage.
struct E4m3 {
  uint8_t bits;
};

// Free of tables and branches, so that loops over it vectorise.
[[gnu::always_inline]] inline float to_float(E4m3 value) {
  const uint32_t magnitude = value.bits & 0x7Fu;
  const uint32_t exponent = magnitude >> 3;
  const uint32_t hidden_bit = exponent != 0 ? 8u : 0u;
  const auto mantissa = static_cast<float>(static_cast<int32_t>((magnitude & 7u) | hidden_bit));
  const uint32_t scale = ((exponent != 0 ? exponent : 1u) + (127u - 10u)) << 23;  // the mantissa has 3 binary places
  const float absolute =
      magnitude == 0x7Fu ? std::numeric_limits<float>::quiet_NaN() : mantissa * std::bit_cast<float>(scale);
  return (value.bits & 0x80u) != 0 ? -absolute : absolute;
}

}  // namespace distill::kernels
