// Loads 64 weights as two vectors of 32 bf16, whether they lie in memory as bf16 or as e4m3. Needs AVX-512 with VBMI,
// and GFNI. Internal to stored_linear.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/stored_linear/row_products.h"

#define DISTILL_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16,gfni,fma")))
#define DISTILL_AVX512_BF16_INLINE \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16,gfni,fma"), always_inline)) inline

namespace distill::kernels {

inline constexpr int64_t kLoadStep = 64;

// Bytes of the bf16 that each e4m3 magnitude stands for.
struct DecodeTables {
  alignas(64) std::array<uint8_t, 128> low;
  alignas(64) std::array<uint8_t, 128> high;

  DecodeTables() {
    for (size_t magnitude = 0; magnitude < low.size(); ++magnitude) {
      const uint16_t bits = from_float<Bf16>(to_float(E4m3{static_cast<uint8_t>(magnitude)})).bits;
      low[magnitude] = static_cast<uint8_t>(bits & 0xFF);
      high[magnitude] = static_cast<uint8_t>(bits >> 8 & 0x7F);
    }
  }
};

inline const DecodeTables kDecodeTables;

// Two vectors of 32 bf16 weights.
struct Weights64 {
  __m512i first, second;
};

template <WeightType kType>
struct Loader;

template <>
struct Loader<WeightType::kBf16> {
  DISTILL_AVX512_BF16_INLINE Loader() {}
  DISTILL_AVX512_BF16_INLINE Weights64 load(const std::byte* at) const {
    return {_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64)};
  }
  // The first `count` < 64 weights and zeros.
  DISTILL_AVX512_BF16_INLINE Weights64 load_part(const std::byte* at, int64_t count) const {
    const uint64_t mask = (uint64_t{1} << count) - 1;
    return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask), at),
            _mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask >> 32), at + 64)};
  }
};

// 64 e4m3 values give 2 x 32 bf16: in each 16 bytes, the first 8 go to the first vector and the last 8 to the second.
template <>
struct Loader<WeightType::kE4m3> {
  // What a normal value's sign s, exponent eeee and mantissa mmm become is linear in its bits: the bytes of bf16 with
  // the exponent eeee + 120 are s, e3, not e3 four times, e2, e1 and e0, mmm, 0000. (In a matrix the lowest byte makes
  // the highest bit.)
  static constexpr int64_t kHigh = 0x10'20'40'40'40'40'40'80;
  static constexpr int64_t kLow = 0x00'00'00'00'01'02'04'08;
  static constexpr int kInverted = 0b0011'1100;

  DISTILL_AVX512_BF16_INLINE Loader() {}
  DISTILL_AVX512_BF16_INLINE Weights64 decode(__m512i bytes) const {
    if (has_others(ranks(bytes))) [[unlikely]] {
      return by_table(bytes);
    }
    return by_bits(bytes);
  }
  // The same of four vectors, into eight.
  DISTILL_AVX512_BF16_INLINE static void decode_four(const __m512i* bytes, __m512i* values) {
    const __m512i largest = _mm512_max_epu8(_mm512_max_epu8(ranks(bytes[0]), ranks(bytes[1])),
                                            _mm512_max_epu8(ranks(bytes[2]), ranks(bytes[3])));
    if (has_others(largest)) [[unlikely]] {
      for (int i = 0; i < 4; ++i) store(by_table(bytes[i]), values + 2 * i);
    } else {
      for (int i = 0; i < 4; ++i) store(by_bits(bytes[i]), values + 2 * i);
    }
  }
  DISTILL_AVX512_BF16_INLINE static void store(const Weights64& weights, __m512i* to) {
    to[0] = weights.first;
    to[1] = weights.second;
  }
  // Largest where a value is not normal: zero and subnormal values have twice their magnitude below 16, NaN above 252.
  DISTILL_AVX512_BF16_INLINE static __m512i ranks(__m512i bytes) {
    return _mm512_add_epi8(_mm512_add_epi8(bytes, bytes), _mm512_set1_epi8(-16));
  }
  DISTILL_AVX512_BF16_INLINE static bool has_others(__m512i ranks) {
    return _mm512_cmpgt_epu8_mask(ranks, _mm512_set1_epi8(static_cast<char>(252 - 16))) != 0;
  }
  // Normal values.
  DISTILL_AVX512_BF16_INLINE static Weights64 by_bits(__m512i bytes) {
    const __m512i low = _mm512_gf2p8affine_epi64_epi8(bytes, _mm512_set1_epi64(kLow), 0);
    const __m512i high = _mm512_gf2p8affine_epi64_epi8(bytes, _mm512_set1_epi64(kHigh), kInverted);
    return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  }
  // Any value.
  DISTILL_AVX512_BF16_INLINE static Weights64 by_table(__m512i bytes) {
    const __m512i low = find(kDecodeTables.low, bytes);
    const __m512i magnitude = find(kDecodeTables.high, bytes);
    constexpr int kAOrBAndC = 0xF8;
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, bytes, _mm512_set1_epi8(-128), kAOrBAndC);
    return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  }
  DISTILL_AVX512_BF16_INLINE static __m512i find(const std::array<uint8_t, 128>& table, __m512i magnitudes) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table.data()), magnitudes, _mm512_load_si512(table.data() + 64));
  }
  DISTILL_AVX512_BF16_INLINE Weights64 load(const std::byte* at) const { return decode(_mm512_loadu_si512(at)); }
  DISTILL_AVX512_BF16_INLINE Weights64 load_part(const std::byte* at, int64_t count) const {
    return by_table(_mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, at));
  }
};

}  // namespace distill::kernels
#endif
