// The GGUF file format (versions 2 and 3, little endian):
//   u32 magic "GGUF", u32 version, u64 tensor count, u64 metadata count
//   metadata   string key, u32 value type, value
//   tensors    string name, u32 dimensions, u64 size of each (the fastest varying first), u32 tensor type,
//              u64 offset of its data
//   padding    to the alignment ("general.alignment", 32 by default)
//   data       of the tensors; offsets count from here and are multiples of the alignment
// A string is a u64 length and UTF-8 bytes; an array is a u32 element type, a u64 count and the elements.
// Described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
#pragma once

#include <cstdint>
#include <string_view>

namespace distill::data::gguf {

inline constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
inline constexpr uint32_t kMinVersion = 2;      // version 1 had 32-bit counts
inline constexpr uint32_t kMaxVersion = 3;
inline constexpr uint64_t kDefaultAlignment = 32;
inline constexpr std::string_view kAlignmentKey = "general.alignment";
inline constexpr uint32_t kMaxDimensions = 4;
inline constexpr int kMaxArrayDepth = 4;

enum class ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// "u8", "f32", "string", ...; "unknown" for a number that is none of them.
std::string_view name(ValueType type);
// Bytes of one value; 0 for strings, arrays and unknown types.
uint64_t value_bytes(ValueType type);

enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kQ8_K = 15,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
  kNVFP4 = 40,
  kQ1_0 = 41,
};

// A tensor is stored in blocks of `values` consecutive elements of a row, `bytes` each.
struct BlockLayout {
  TensorType type;
  std::string_view name;
  uint32_t values;
  uint32_t bytes;
};

// Null if the type is none of ours. Being known does not mean that it can be dequantised.
const BlockLayout* block_layout(uint32_t type);
const BlockLayout* block_layout(std::string_view name);

}  // namespace distill::data::gguf
