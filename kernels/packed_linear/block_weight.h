// Weights that stay in small integers with a scale per block, and become bf16 only on their way into a product: a third
// to a half of the memory traffic, the very same bf16 values.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/multiversion.h"
#include "kernels/packed_linear/packed_linear.h"

namespace distill::kernels {

// Rows of w = scale * code + min, each scale and min for kBlockInputs neighbouring inputs of one output: what GGUF
// calls Q4_0 (min = -8 scale), Q4_1 and Q8_0 (no min).
struct BlockWeight {
  at::Tensor codes;   // [out, in] uint8 in [0, 16) for 4 bits, or int8; in is a multiple of kBlockInputs
  at::Tensor scales;  // [out, in / kBlockInputs] fp16
  at::Tensor mins;    // likewise, or undefined
};

inline constexpr int64_t kBlockInputs = 2 * kPairAlignment;

PackedWeight pack_weight(const BlockWeight& weight);

// The values [out, in] fp32.
at::Tensor block_values(const BlockWeight& weight);

// One panel of a packed block weight: for each block of inputs the codes of 32 outputs. 8 bits: [32 outputs, 32
// inputs]. 4 bits: [8, 32 inputs] words of 16 bits, whose four nibbles, from the lowest on, belong to outputs 4g to
// 4g + 3 of group g, so that one vector's nibbles at one place are all inputs of one output.
struct BlockPanel {
  const void* codes;       // uint8 with two codes each, or int8
  const uint16_t* scales;  // [blocks, 1 or 2, 32] fp16: the scales, then the mins if there are any
  int64_t blocks;
  bool four_bits;
  bool has_mins;

  int64_t block_bytes() const { return kPanelWidth * kBlockInputs / (four_bits ? 2 : 1); }
  int64_t block_scales() const { return kPanelWidth * (has_mins ? 2 : 1); }
};

// Writes the panel's bf16 values [blocks * 16, 32, 2], rounded to nearest even.
void decode_panel(const BlockPanel& panel, Bf16* out);

// The same in portable code, whatever the machine has.
void decode_panel_portable(const BlockPanel& panel, Bf16* out);

// Writes the bf16 values [blocks * kBlockInputs] of one of the panel's outputs.
void decode_row(const BlockPanel& panel, int64_t output, Bf16* out);

}  // namespace distill::kernels
