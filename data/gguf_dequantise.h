// From GGUF's storage types to fp32, bit for bit as the `gguf` Python package computes it: each operation rounds on its
// own, scales may be infinite or NaN.
#pragma once

#include <cstddef>
#include <span>

#include "data/gguf_format.h"

namespace distill::data::gguf {

// True for F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K.
bool can_dequantise(TensorType type);

// Writes the values of whole blocks. `values` must hold exactly as many as `blocks` has, and the type must be one that
// can be dequantised. Any thread; disjoint pieces of one tensor may be done in parallel.
void dequantise(TensorType type, std::span<const std::byte> blocks, std::span<float> values);

}  // namespace distill::data::gguf
