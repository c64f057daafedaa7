// Decodes blocks of integers in registers of AVX-512. Internal to packed_linear.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>

#include <cstdint>

#include "kernels/packed_linear/block_weight.h"

#define DISTILL_AVX512_BLOCKS __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define DISTILL_AVX512_BLOCKS_INLINE \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"), always_inline)) inline

namespace distill::kernels {

inline constexpr int64_t kTileOutputs = 16;  // half a panel: rows of an AMX tile, lanes of a vector

// 16 fp16 as fp32.
DISTILL_AVX512_BLOCKS_INLINE __m512 load_halves(const uint16_t* halves) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

// Numbers in memory, where each can be broadcast from.
struct alignas(64) SixteenFloats {
  float values[kTileOutputs];

  DISTILL_AVX512_BLOCKS_INLINE void set(__m512 numbers) {
    _mm512_store_ps(values, numbers);
    __asm__("" : "+m"(values));  // GCC would permute registers instead of loading, on the port that the tables need
  }
  DISTILL_AVX512_BLOCKS_INLINE __m512 spread(int64_t i) const { return _mm512_set1_ps(values[i]); }
};

// One block of 16 outputs: rows[r] becomes the 32 bf16 values of output r, fma(code, scale, min) rounded to nearest
// even. A 4-bit code can only be one of 16 values, so that an output's values are computed once and looked up, two
// outputs in one table: 21 vector instructions for 128 weights, where converting each code would take 40.
template <bool kFourBits>
DISTILL_AVX512_BLOCKS_INLINE void decode_tile(const uint8_t* codes, const uint16_t* scales, const uint16_t* mins,
                                              __m512i* rows) {
  SixteenFloats scale;
  SixteenFloats min;
  scale.set(load_halves(scales));
  min.set(mins != nullptr ? load_halves(mins) : _mm512_setzero_ps());
  if constexpr (kFourBits) {
    const __m512 all_codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low_bits = _mm512_set1_epi16(15);
    const __m512i second_half = _mm512_set1_epi16(16);
    constexpr int kAAndBOrC = 0xEA;
#pragma GCC unroll 4
    for (int64_t g = 0; g < 4; ++g) {
      const __m512i words = _mm512_loadu_si512(codes + 64 * g);
      const auto table = [&](int64_t r) DISTILL_AVX512_BLOCKS {
        const __m512 first = _mm512_fmadd_ps(all_codes, scale.spread(r), min.spread(r));
        const __m512 second = _mm512_fmadd_ps(all_codes, scale.spread(r + 1), min.spread(r + 1));
        return (__m512i)_mm512_cvtne2ps_pbh(second, first);
      };
      const __m512i lower = table(4 * g);
      const __m512i upper = table(4 * g + 2);
      rows[4 * g] = _mm512_permutexvar_epi16(_mm512_and_si512(words, low_bits), lower);
      rows[4 * g + 1] = _mm512_permutexvar_epi16(
          _mm512_ternarylogic_epi32(_mm512_srli_epi16(words, 4), low_bits, second_half, kAAndBOrC), lower);
      rows[4 * g + 2] = _mm512_permutexvar_epi16(_mm512_and_si512(_mm512_srli_epi16(words, 8), low_bits), upper);
      rows[4 * g + 3] = _mm512_permutexvar_epi16(_mm512_or_si512(_mm512_srli_epi16(words, 12), second_half), upper);
    }
  } else {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kTileOutputs; ++r) {
      const auto half = [&](int64_t i) DISTILL_AVX512_BLOCKS {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 32 * r + 16 * i));
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), scale.spread(r), min.spread(r));
      };
      rows[r] = (__m512i)_mm512_cvtne2ps_pbh(half(1), half(0));
    }
  }
}

// Turns rows[r] lane c into rows[c] lane r.
DISTILL_AVX512_BLOCKS_INLINE void transpose(__m512i* rows) {
  __m512i pairs[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // rows[i + j]: lanes j of each quarter of four rows
    rows[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // even and odd quarters of eight rows
    pairs[j] = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0x88);
    pairs[4 + j] = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0xDD);
    pairs[8 + j] = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0x88);
    pairs[12 + j] = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0xDD);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    rows[j] = _mm512_shuffle_i32x4(pairs[j], pairs[8 + j], 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(pairs[4 + j], pairs[12 + j], 0x88);
    rows[8 + j] = _mm512_shuffle_i32x4(pairs[j], pairs[8 + j], 0xDD);
    rows[12 + j] = _mm512_shuffle_i32x4(pairs[4 + j], pairs[12 + j], 0xDD);
  }
}

}  // namespace distill::kernels
#endif
