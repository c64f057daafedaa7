// GGUF's simplest quantised blocks as the kernels multiply with them, without going through fp32.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "data/gguf_format.h"
#include "kernels/packed_linear/block_weight.h"

namespace distill::data::gguf {

// The matrix `shape` [out, in] that lies in `blocks`. Nothing unless the type is Q4_0, Q4_1 or Q8_0 and every block's
// values are scale * code + min with a finite scale and min.
std::optional<kernels::BlockWeight> block_weight(TensorType type, std::span<const std::byte> blocks,
                                                 const std::vector<int64_t>& shape);

}  // namespace distill::data::gguf
