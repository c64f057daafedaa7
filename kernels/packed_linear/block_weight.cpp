#include "kernels/packed_linear/block_weight.h"

#include <ATen/ATen.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace distill::kernels {
namespace {

constexpr int64_t kPairs = kPairAlignment;  // of inputs in a block
constexpr int64_t kWidth = kPanelWidth;
constexpr int64_t kStepValues = 2 * kWidth;  // of one pair of inputs

// [out, ...] padded to whole panels, as [panels, 64, ...].
at::Tensor by_panel(const at::Tensor& rows) {
  const int64_t missing = (kWidth - rows.size(0) % kWidth) % kWidth;
  const at::Tensor padded = at::constant_pad_nd(rows, {0, 0, 0, missing});
  return padded.view({-1, kWidth, rows.size(1)});
}

// [panels, 64, in] -> [panels, blocks, 16 pairs, 64, 2].
at::Tensor by_step(const at::Tensor& codes) {
  const int64_t blocks = codes.size(2) / kBlockInputs;
  return codes.view({codes.size(0), kWidth, blocks, kPairs, 2}).permute({0, 2, 3, 1, 4});
}

at::Tensor pack_nibbles(const at::Tensor& steps) {
  const at::Tensor groups = steps.reshape({steps.size(0), steps.size(1), kPairs, 4, 2, 8, 2});
  return (groups.select(4, 0) | groups.select(4, 1).bitwise_left_shift(4))
      .reshape({steps.size(0), steps.size(1), kPairs, kWidth})
      .contiguous();
}

// fp16 -> fp32, exact. Scales are finite and few, so that branches do no harm.
inline float half_to_float(uint16_t half) {
  return c10::detail::fp16_ieee_to_fp32_value(half);
}

inline float code_at(const BlockPanel& panel, int64_t step, int64_t value) {
  if (!panel.four_bits) return static_cast<const int8_t*>(panel.codes)[step * kStepValues + value];
  const int64_t output = value / 2;
  const auto byte =
      static_cast<const uint8_t*>(panel.codes)[step * kWidth + output / 16 * 16 + output % 8 * 2 + value % 2];
  return static_cast<float>(output % 16 < 8 ? byte & 15 : byte >> 4);
}

#ifdef __x86_64__
#define DISTILL_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

// 16 fp16 as fp32, each twice: the scales of 16 outputs for their pairs of inputs.
DISTILL_AVX512_BF16 inline void load_doubled(const uint16_t* halves, __m512* out) {
  const __m512i lower = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
  const __m512 values = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  out[0] = _mm512_permutexvar_ps(lower, values);
  out[1] = _mm512_permutexvar_ps(upper, values);
}

template <bool kFourBits>
DISTILL_AVX512_BF16 void decode_avx512(const BlockPanel& panel, Bf16* out) {
  constexpr int64_t kStepBytes = kFourBits ? kWidth : kStepValues;
  constexpr int64_t kAhead = 8192;  // the next panel follows this one in memory
  const auto* codes = static_cast<const char*>(panel.codes);
  const uint16_t* scales = panel.scales;
  for (int64_t b = 0; b < panel.blocks; ++b) {
    __m512 scale[8];
    __m512 min[8];
    for (int g = 0; g < 4; ++g) load_doubled(scales + 16 * g, scale + 2 * g);
    scales += kWidth;
    if (panel.has_mins) {
      for (int g = 0; g < 4; ++g) load_doubled(scales + 16 * g, min + 2 * g);
      scales += kWidth;
    } else {
      for (auto& m : min) m = _mm512_setzero_ps();
    }
    for (int64_t step = 0; step < kPairs; ++step, codes += kStepBytes, out += kStepValues) {
      for (int64_t i = 0; i < kStepBytes; i += 64) __builtin_prefetch(codes + kAhead + i, 0, 2);
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        __m512i low;
        __m512i high;
        if constexpr (kFourBits) {
          const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes) + g));
          low = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
          high = _mm512_srli_epi32(bytes, 4);
        } else {
          low = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes) + 2 * g));
          high = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes) + 2 * g + 1));
        }
        const __m512 first = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low), scale[2 * g], min[2 * g]);
        const __m512 second = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), scale[2 * g + 1], min[2 * g + 1]);
        _mm512_storeu_si512(out + g * 32, (__m512i)_mm512_cvtne2ps_pbh(second, first));
      }
    }
  }
}
#endif

}  // namespace

PackedWeight pack_weight(const BlockWeight& weight) {
  const at::Tensor& codes = weight.codes;
  TORCH_CHECK(codes.dim() == 2 && codes.size(1) % kBlockInputs == 0 &&
                  (codes.scalar_type() == at::kByte || codes.scalar_type() == at::kChar),
              "pack_weight: codes must be uint8 or int8 [out, a multiple of ", kBlockInputs, "], are ",
              codes.scalar_type(), " ", codes.sizes());
  const std::vector<int64_t> blocks{codes.size(0), codes.size(1) / kBlockInputs};
  for (const at::Tensor& values : {weight.scales, weight.mins}) {
    TORCH_CHECK((!values.defined() && weight.scales.defined()) ||
                    (values.sizes() == blocks && values.scalar_type() == at::kHalf),
                "pack_weight: scales and mins must be fp16 [out, in / ", kBlockInputs, "]");
  }
  const at::Tensor steps = by_step(by_panel(codes));
  const bool four_bits = codes.scalar_type() == at::kByte;
  std::vector<at::Tensor> scales{by_panel(weight.scales).transpose(1, 2)};
  if (weight.mins.defined()) scales.push_back(by_panel(weight.mins).transpose(1, 2));
  return {.panels = four_bits ? pack_nibbles(steps) : steps.contiguous(),
          .scales = at::stack(scales, 2).contiguous(),
          .in = codes.size(1),
          .out = codes.size(0)};
}

at::Tensor block_values(const BlockWeight& weight) {
  const auto spread = [](const at::Tensor& x) { return x.to(at::kFloat).repeat_interleave(kBlockInputs, 1); };
  const at::Tensor scaled = weight.codes.to(at::kFloat) * spread(weight.scales);
  return weight.mins.defined() ? scaled + spread(weight.mins) : scaled;
}

void decode_panel_portable(const BlockPanel& panel, Bf16* out) {
  const int64_t rows = panel.has_mins ? 2 : 1;
  for (int64_t step = 0; step < panel.blocks * kPairs; ++step) {
    const uint16_t* scales = panel.scales + step / kPairs * rows * kWidth;
    for (int64_t i = 0; i < kStepValues; ++i) {
      const float min = panel.has_mins ? half_to_float(scales[kWidth + i / 2]) : 0.0f;
      out[step * kStepValues + i] = from_float<Bf16>(code_at(panel, step, i) * half_to_float(scales[i / 2]) + min);
    }
  }
}

void decode_panel(const BlockPanel& panel, Bf16* out) {
#ifdef __x86_64__
  static const bool has_avx512 =
      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (has_avx512) return panel.four_bits ? decode_avx512<true>(panel, out) : decode_avx512<false>(panel, out);
#endif
  decode_panel_portable(panel, out);
}

}  // namespace distill::kernels
