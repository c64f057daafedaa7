#include "kernels/packed_linear/block_weight.h"

#include <ATen/ATen.h>

#include <vector>

#include "kernels/cpu_features.h"
#include "kernels/packed_linear/block_decode.h"

namespace distill::kernels {
namespace {

constexpr int64_t kPairs = kPairAlignment;  // of inputs in a block
constexpr int64_t kWidth = kPanelWidth;

// [out, ...] padded to whole panels, as [panels, 32, ...].
at::Tensor by_panel(const at::Tensor& rows) {
  const int64_t missing = (kWidth - rows.size(0) % kWidth) % kWidth;
  const at::Tensor padded = at::constant_pad_nd(rows, {0, 0, 0, missing});
  return padded.view({-1, kWidth, rows.size(1)});
}

// [panels, blocks, 32 outputs, 32 inputs] -> [panels, blocks, 8 groups, 32 inputs, 2 bytes of a word].
at::Tensor pack_nibbles(const at::Tensor& blocks) {
  const at::Tensor pairs = blocks.view({blocks.size(0), blocks.size(1), kWidth / 4, 2, 2, kBlockInputs});
  return (pairs.select(4, 0) | pairs.select(4, 1).bitwise_left_shift(4)).transpose(3, 4).contiguous();
}

// fp16 -> fp32, exact. Scales are finite and few, so that branches do no harm.
inline float half_to_float(uint16_t half) {
  return c10::detail::fp16_ieee_to_fp32_value(half);
}

inline int code_at(const BlockPanel& panel, int64_t block, int64_t output, int64_t input) {
  const auto* codes = static_cast<const uint8_t*>(panel.codes) + block * panel.block_bytes();
  if (!panel.four_bits) return static_cast<int8_t>(codes[output * kBlockInputs + input]);
  return codes[(output / 4 * kBlockInputs + input) * 2 + output % 4 / 2] >> output % 2 * 4 & 15;
}

#ifdef __x86_64__
template <bool kFourBits>
DISTILL_AVX512_BLOCKS void decode_avx512(const BlockPanel& panel, Bf16* out) {
  const auto* codes = static_cast<const uint8_t*>(panel.codes);
  const uint16_t* scales = panel.scales;
  for (int64_t b = 0; b < panel.blocks; ++b, out += kBlockInputs * kWidth) {
    for (int64_t first = 0; first < kWidth; first += kTileOutputs) {
      __m512i rows[kTileOutputs];
      decode_tile<kFourBits>(codes, scales + first, panel.has_mins ? scales + kWidth + first : nullptr, rows);
      transpose(rows);
      for (int64_t pair = 0; pair < kPairs; ++pair) _mm512_storeu_si512(out + (pair * kWidth + first) * 2, rows[pair]);
      codes += panel.block_bytes() / 2;
    }
    scales += panel.block_scales();
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
  const bool four_bits = codes.scalar_type() == at::kByte;
  const at::Tensor panels = by_panel(codes);
  const at::Tensor by_block =
      panels.view({panels.size(0), kWidth, panels.size(2) / kBlockInputs, kBlockInputs}).transpose(1, 2).contiguous();
  std::vector<at::Tensor> scales{by_panel(weight.scales).transpose(1, 2)};
  if (weight.mins.defined()) scales.push_back(by_panel(weight.mins).transpose(1, 2));
  return {.panels = four_bits ? pack_nibbles(by_block) : by_block,
          .scales = at::stack(scales, 2).contiguous(),
          .in = codes.size(1),
          .out = codes.size(0)};
}

at::Tensor block_values(const BlockWeight& weight) {
  const auto spread = [](const at::Tensor& x) { return x.to(at::kFloat).repeat_interleave(kBlockInputs, 1); };
  const at::Tensor scaled = weight.codes.to(at::kFloat) * spread(weight.scales);
  return weight.mins.defined() ? scaled + spread(weight.mins) : scaled;
}

void decode_row(const BlockPanel& panel, int64_t output, Bf16* out) {
  for (int64_t b = 0; b < panel.blocks; ++b, out += kBlockInputs) {
    const uint16_t* scales = panel.scales + b * panel.block_scales() + output;
    const float scale = half_to_float(scales[0]);
    const float min = panel.has_mins ? half_to_float(scales[kWidth]) : 0.0f;
    for (int64_t i = 0; i < kBlockInputs; ++i) {
      out[i] = from_float<Bf16>(static_cast<float>(code_at(panel, b, output, i)) * scale + min);
    }
  }
}

void decode_panel_portable(const BlockPanel& panel, Bf16* out) {
  std::vector<Bf16> row(static_cast<size_t>(panel.blocks * kBlockInputs));
  for (int64_t output = 0; output < kWidth; ++output) {
    decode_row(panel, output, row.data());
    for (size_t i = 0; i < row.size(); ++i) out[i / 2 * kWidth * 2 + output * 2 + i % 2] = row[i];
  }
}

void decode_panel(const BlockPanel& panel, Bf16* out) {
#ifdef __x86_64__
  if (has_avx512_bf16()) return panel.four_bits ? decode_avx512<true>(panel, out) : decode_avx512<false>(panel, out);
#endif
  decode_panel_portable(panel, out);
}

}  // namespace distill::kernels
