// All lanes of a RansDecoder at once, with AVX2: what RansDecoder's get() and get_raw() give for the lanes from the
// first to the last, a symbol and then its raw bits in each.
#pragma once

#if defined(__x86_64__)
#define DISTILL_WIDE_RANS 1

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "data/rans.h"

#define DISTILL_AVX2 [[gnu::target("avx2,bmi2")]]
#define DISTILL_AVX2_INLINE [[gnu::target("avx2,bmi2"), gnu::always_inline]] inline

namespace distill::data {

// 32-bit numbers, one per lane; as a mask all bits or none.
using LaneVector = __m256i;

// Takes a decoder's place until store(). Keeps all that it reads inside the tables and the words, whatever they hold:
// a table's intervals fill the slots, and the words end in zeros that one step cannot pass.
class WideRansDecoder {
 public:
  static bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }

  // `tables` are all those that contexts number.
  DISTILL_AVX2_INLINE WideRansDecoder(const RansDecoder& decoder, const RansTable* tables)
      : tables_(reinterpret_cast<const char*>(tables)) {
    load(decoder);
  }
  DISTILL_AVX2_INLINE void load(const RansDecoder& decoder) {
    states_ = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(decoder.states_.data()));
    next_ = decoder.next_;
    last_ = decoder.last_;
  }
  DISTILL_AVX2_INLINE void store(RansDecoder& decoder) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(decoder.states_.data()), states_);
    decoder.next_ = next_;
  }

  // What the tables of `contexts` make of the states; read() moves on. Lanes left out have a context too.
  struct Symbols {
    LaneVector symbols;
    LaneVector states;  // before words are added
  };
  DISTILL_AVX2_INLINE Symbols look_up(LaneVector contexts) const {
    const __m256i one = _mm256_set1_epi32(1);
    const __m256i table = _mm256_mullo_epi32(contexts, _mm256_set1_epi32(sizeof(RansTable)));
    const __m256i slots = _mm256_and_si256(states_, _mm256_set1_epi32((1 << rans::kScaleBits) - 1));
    const __m256i buckets = _mm256_add_epi32(table, _mm256_srli_epi32(slots, RansTable::kBucketBits));
    __m256i symbols = _mm256_and_si256(at(buckets, offsetof(RansTable, first_)), _mm256_set1_epi32(0xFF));
    for (;;) {
      // The starts of the next two symbols, the second in the upper half.
      const __m256i starts = at(_mm256_add_epi32(table, _mm256_slli_epi32(_mm256_add_epi32(symbols, one), 1)),
                                offsetof(RansTable, starts_));
      const __m256i after = _mm256_add_epi32(slots, one);
      const __m256i second = _mm256_cmpgt_epi32(after, _mm256_srli_epi32(starts, 16));
      symbols = _mm256_sub_epi32(symbols, _mm256_cmpgt_epi32(after, low_half(starts)));
      symbols = _mm256_sub_epi32(symbols, second);
      if (_mm256_testz_si256(second, second)) break;
    }
    const __m256i bounds = at(_mm256_add_epi32(table, _mm256_slli_epi32(symbols, 1)), offsetof(RansTable, starts_));
    const __m256i start = low_half(bounds);
    const __m256i frequencies = _mm256_sub_epi32(_mm256_srli_epi32(bounds, 16), start);
    const __m256i high = _mm256_mullo_epi32(frequencies, _mm256_srli_epi32(states_, rans::kScaleBits));
    return {symbols, _mm256_add_epi32(high, _mm256_sub_epi32(slots, start))};
  }

  // Takes those symbols, and up to 16 raw bits after each, in the lanes of `active`. Gives the raw bits.
  DISTILL_AVX2_INLINE LaneVector read(const Symbols& found, LaneVector bits, LaneVector active) {
    const __m256i zero = _mm256_setzero_si256(), states = found.states;
    const __m256i upper = _mm256_srli_epi32(states, 16);
    // Which words are due follows from the states alone: a word does not reach the bits that decide whether the second
    // is. Two zero halves would be needed for a third.
    const __m256i first = _mm256_and_si256(_mm256_cmpeq_epi32(upper, zero), active);
    const __m256i decisive = _mm256_srlv_epi32(_mm256_blendv_epi8(upper, states, first), bits);
    const __m256i second = _mm256_and_si256(_mm256_cmpeq_epi32(decisive, zero), active);
    // Each lane's words lie behind those of the lanes before.
    const uint64_t due = _pdep_u64(mask(first), kBytes) + _pdep_u64(mask(second), kBytes);
    const uint64_t through = due * kBytes;
    const __m256i places = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(through - due)));
    const __m256i words = _mm256_i32gather_epi32(reinterpret_cast<const int*>(next_), places, 2);
    next_ = std::min(next_ + (through >> 56), last_);

    const __m256i word = low_half(words);
    __m256i state = _mm256_blendv_epi8(states, _mm256_or_si256(_mm256_slli_epi32(states, 16), word), first);
    const __m256i raw = _mm256_andnot_si256(_mm256_sllv_epi32(_mm256_set1_epi32(-1), bits), state);
    state = _mm256_srlv_epi32(state, bits);
    const __m256i other = _mm256_blendv_epi8(word, _mm256_srli_epi32(words, 16), first);
    state = _mm256_blendv_epi8(state, _mm256_or_si256(_mm256_slli_epi32(state, 16), other), second);
    states_ = _mm256_blendv_epi8(states_, state, active);
    return raw;
  }

 private:
  static constexpr uint64_t kBytes = 0x0101010101010101;

  DISTILL_AVX2_INLINE static __m256i low_half(__m256i values) {
    return _mm256_and_si256(values, _mm256_set1_epi32(0xFFFF));
  }
  DISTILL_AVX2_INLINE static unsigned mask(__m256i lanes) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
  }
  // The four bytes at a table's member, for each lane.
  DISTILL_AVX2_INLINE __m256i at(__m256i offsets, size_t member) const {
    return _mm256_i32gather_epi32(reinterpret_cast<const int*>(tables_ + member), offsets, 1);
  }

  const char* tables_;
  __m256i states_;
  const uint16_t *next_, *last_;
};

}  // namespace distill::data
#endif
