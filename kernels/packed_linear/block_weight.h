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

// One panel of a packed block weight. Of each block lie its `steps` pairs of inputs one after the other, each with the
// codes of 64 outputs: 8 bits as [64, 2]; 4 bits as 4 groups of 16 bytes, byte i of a group holding in its low half
// input i % 2 of output i / 2 and in its high half the same of output 8 + i / 2.
struct BlockPanel {
  const void* codes;       // [blocks, 16, 64, 2]: uint8 with two codes each, or int8
  const uint16_t* scales;  // [blocks, 1 or 2, 64] fp16: the scales, then the mins if there are any
  int64_t blocks;
  bool four_bits;
  bool has_mins;
};

// Writes the panel's bf16 values [blocks * 16, 64, 2], rounded to nearest even.
void decode_panel(const BlockPanel& panel, Bf16* out);

// The same in portable code, whatever the machine has.
void decode_panel_portable(const BlockPanel& panel, Bf16* out);

}  // namespace distill::kernels
