// The safetensors file format, shared by reader and writer:
//   u64 little endian   length of the header
//   JSON object         tensor name -> {"dtype", "shape", "data_offsets": [begin, end)}, optionally "__metadata__": a
//   map
//                       of strings; may be padded with spaces
//   bytes               the tensors, row-major and little endian; offsets count from here; no gaps and no overlaps
// Described at https://github.com/huggingface/safetensors#format.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string_view>

namespace distill::data::safetensors {

inline constexpr uint64_t kLengthBytes = 8;
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation bounds it
inline constexpr uint64_t kHeaderAlignment = 8;
inline constexpr std::string_view kMetadataKey = "__metadata__";

// Null for a dtype that torch has no type for (F4, F6_E2M3, ...).
std::optional<at::ScalarType> scalar_type(std::string_view dtype);

// "BF16", "F8_E4M3", ... Throws Error for a torch type without a name in the format (complex, quantised).
std::string_view dtype_name(at::ScalarType type);

}  // namespace distill::data::safetensors
