// Compiled with -ffp-contract=off: a fused multiply-add would round once where the reference rounds twice.
#include "data/gguf_dequantise.h"

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "core/error.h"

namespace distill::data::gguf {
namespace {

// IEEE half to single by its bits, so that a NaN keeps its payload.
float half_at(const uint8_t* bytes) {
  const uint32_t half = static_cast<uint32_t>(bytes[0]) | static_cast<uint32_t>(bytes[1]) << 8;
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1Fu;
  const uint32_t mantissa = half & 0x3FFu;
  if (exponent == 0) {  // zero or subnormal: a multiple of 2^-24
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1.0p-24f));
  }
  const uint32_t wide = exponent == 0x1Fu ? 0xFFu : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

float int8_at(const uint8_t* byte) {
  return static_cast<float>(static_cast<int8_t>(*byte));
}

// Each block type: its size, and decode() of one block.

struct F32 {
  static constexpr size_t kBytes = 4;
  static constexpr size_t kValues = 1;
  static void decode(const uint8_t* block, float* values) { std::memcpy(values, block, sizeof(float)); }
};

struct F16 {
  static constexpr size_t kBytes = 2;
  static constexpr size_t kValues = 1;
  static void decode(const uint8_t* block, float* values) { *values = half_at(block); }
};

struct BF16 {
  static constexpr size_t kBytes = 2;
  static constexpr size_t kValues = 1;
  static void decode(const uint8_t* block, float* values) {
    *values = std::bit_cast<float>(static_cast<uint32_t>(block[0]) << 16 | static_cast<uint32_t>(block[1]) << 24);
  }
};

// f16 scale; 16 bytes of nibbles: value j in the low half of byte j, value 16 + j in the high half.
struct Q4_0 {
  static constexpr size_t kBytes = 18;
  static constexpr size_t kValues = 32;
  static void decode(const uint8_t* block, float* values) {
    const float scale = half_at(block);
    const uint8_t* nibbles = block + 2;
    for (int j = 0; j < 16; ++j) {
      values[j] = scale * static_cast<float>((nibbles[j] & 15) - 8);
      values[16 + j] = scale * static_cast<float>((nibbles[j] >> 4) - 8);
    }
  }
};

// f16 scale, f16 minimum; nibbles as Q4_0.
struct Q4_1 {
  static constexpr size_t kBytes = 20;
  static constexpr size_t kValues = 32;
  static void decode(const uint8_t* block, float* values) {
    const float scale = half_at(block);
    const float minimum = half_at(block + 2);
    const uint8_t* nibbles = block + 4;
    for (int j = 0; j < 16; ++j) {
      values[j] = scale * static_cast<float>(nibbles[j] & 15) + minimum;
      values[16 + j] = scale * static_cast<float>(nibbles[j] >> 4) + minimum;
    }
  }
};

// The 5-bit numbers of Q5_0 and Q5_1: 32 fifth bits, little endian, then nibbles as Q4_0.
std::array<int32_t, 32> five_bit_numbers(const uint8_t* bytes) {
  uint32_t fifths = 0;
  std::memcpy(&fifths, bytes, sizeof fifths);
  const uint8_t* nibbles = bytes + 4;
  std::array<int32_t, 32> numbers;
  for (int j = 0; j < 16; ++j) {
    numbers[j] = static_cast<int32_t>((nibbles[j] & 15) | ((fifths >> j) & 1) << 4);
    numbers[16 + j] = static_cast<int32_t>((nibbles[j] >> 4) | ((fifths >> (16 + j)) & 1) << 4);
  }
  return numbers;
}

// f16 scale, then 5-bit numbers.
struct Q5_0 {
  static constexpr size_t kBytes = 22;
  static constexpr size_t kValues = 32;
  static void decode(const uint8_t* block, float* values) {
    const float scale = half_at(block);
    const auto numbers = five_bit_numbers(block + 2);
    for (int j = 0; j < 32; ++j) values[j] = scale * static_cast<float>(numbers[j] - 16);
  }
};

// f16 scale, f16 minimum, then 5-bit numbers.
struct Q5_1 {
  static constexpr size_t kBytes = 24;
  static constexpr size_t kValues = 32;
  static void decode(const uint8_t* block, float* values) {
    const float scale = half_at(block);
    const float minimum = half_at(block + 2);
    const auto numbers = five_bit_numbers(block + 4);
    for (int j = 0; j < 32; ++j) values[j] = scale * static_cast<float>(numbers[j]) + minimum;
  }
};

// f16 scale, 32 signed bytes.
struct Q8_0 {
  static constexpr size_t kBytes = 34;
  static constexpr size_t kValues = 32;
  static void decode(const uint8_t* block, float* values) {
    const float scale = half_at(block);
    for (int j = 0; j < 32; ++j) values[j] = int8_at(block + 2 + j) * scale;
  }
};

// The scales and minima of the eight sub-blocks of Q4_K and Q5_K: f16 scale and f16 minimum of the block, times 6-bit
// numbers. Of the 12 bytes, the first four hold scales 0 to 3 and the next four minima 0 to 3 in their low six bits;
// scales and minima 4 to 7 have their low four bits in the last four bytes, their high two on top of those six.
struct SubBlockScales {
  std::array<float, 8> scale;
  std::array<float, 8> minimum;

  explicit SubBlockScales(const uint8_t* block) {
    const float block_scale = half_at(block);
    const float block_minimum = half_at(block + 2);
    const uint8_t* packed = block + 4;
    for (int j = 0; j < 4; ++j) {
      scale[j] = block_scale * static_cast<float>(packed[j] & 63);
      minimum[j] = block_minimum * static_cast<float>(packed[4 + j] & 63);
      scale[4 + j] = block_scale * static_cast<float>((packed[8 + j] & 15) | (packed[j] >> 6) << 4);
      minimum[4 + j] = block_minimum * static_cast<float>((packed[8 + j] >> 4) | (packed[4 + j] >> 6) << 4);
    }
  }
};

// Sub-block scales (16 bytes); 4 x 32 bytes of nibbles: sub-block 2g in the low halves of group g, 2g + 1 in the high.
struct Q4_K {
  static constexpr size_t kBytes = 144;
  static constexpr size_t kValues = 256;
  static void decode(const uint8_t* block, float* values) {
    const SubBlockScales scales(block);
    for (int s = 0; s < 8; ++s) {
      const uint8_t* nibbles = block + 16 + s / 2 * 32;
      const int shift = s % 2 * 4;
      for (int j = 0; j < 32; ++j) {
        values[s * 32 + j] = scales.scale[s] * static_cast<float>((nibbles[j] >> shift) & 15) - scales.minimum[s];
      }
    }
  }
};

// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit s of byte j belongs to value j of sub-block s.
struct Q5_K {
  static constexpr size_t kBytes = 176;
  static constexpr size_t kValues = 256;
  static void decode(const uint8_t* block, float* values) {
    const SubBlockScales scales(block);
    const uint8_t* fifths = block + 16;
    for (int s = 0; s < 8; ++s) {
      const uint8_t* nibbles = block + 48 + s / 2 * 32;
      const int shift = s % 2 * 4;
      for (int j = 0; j < 32; ++j) {
        const int number = ((nibbles[j] >> shift) & 15) | ((fifths[j] >> s) & 1) << 4;
        values[s * 32 + j] = scales.scale[s] * static_cast<float>(number) - scales.minimum[s];
      }
    }
  }
};

// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, f16 scale of the block. Of each half of the
// block (128 values, 64 and 32 bytes), quarter q has its nibbles in the low (q < 2) or high halves of bytes
// 32 (q mod 2) + j and its high bits in bits 2q and 2q + 1 of byte j.
struct Q6_K {
  static constexpr size_t kBytes = 210;
  static constexpr size_t kValues = 256;
  static void decode(const uint8_t* block, float* values) {
    const float block_scale = half_at(block + 208);
    for (int quarter = 0; quarter < 8; ++quarter) {
      const int half = quarter / 4;
      const int q = quarter % 4;
      const uint8_t* nibbles = block + half * 64 + q % 2 * 32;
      const uint8_t* pairs = block + 128 + half * 32;
      const int shift = q / 2 * 4;
      const uint8_t* scales = block + 192 + quarter * 2;
      const std::array<float, 2> scale{block_scale * int8_at(scales), block_scale * int8_at(scales + 1)};
      for (int j = 0; j < 32; ++j) {
        const int number = ((nibbles[j] >> shift) & 15) | ((pairs[j] >> (2 * q)) & 3) << 4;
        values[quarter * 32 + j] = scale[j / 16] * static_cast<float>(number - 32);
      }
    }
  }
};

template <typename Block>
void decode_all(std::span<const std::byte> blocks, std::span<float> values) {
  const size_t count = blocks.size() / Block::kBytes;
  core::check(blocks.size() == count * Block::kBytes && values.size() == count * Block::kValues,
              "{} bytes of blocks do not make {} values", blocks.size(), values.size());
  const auto* from = reinterpret_cast<const uint8_t*>(blocks.data());
  float* to = values.data();
  for (size_t i = 0; i < count; ++i, from += Block::kBytes, to += Block::kValues) Block::decode(from, to);
}

using Decoder = void (*)(std::span<const std::byte>, std::span<float>);

Decoder decoder_of(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return decode_all<F32>;
    case TensorType::kF16:
      return decode_all<F16>;
    case TensorType::kBF16:
      return decode_all<BF16>;
    case TensorType::kQ4_0:
      return decode_all<Q4_0>;
    case TensorType::kQ4_1:
      return decode_all<Q4_1>;
    case TensorType::kQ5_0:
      return decode_all<Q5_0>;
    case TensorType::kQ5_1:
      return decode_all<Q5_1>;
    case TensorType::kQ8_0:
      return decode_all<Q8_0>;
    case TensorType::kQ4_K:
      return decode_all<Q4_K>;
    case TensorType::kQ5_K:
      return decode_all<Q5_K>;
    case TensorType::kQ6_K:
      return decode_all<Q6_K>;
    default:
      return nullptr;
  }
}

}  // namespace

bool can_dequantise(TensorType type) {
  return decoder_of(type) != nullptr;
}

void dequantise(TensorType type, std::span<const std::byte> blocks, std::span<float> values) {
  const Decoder decode = decoder_of(type);
  core::check(decode != nullptr, "tensors of GGUF type {} cannot be dequantised", static_cast<uint32_t>(type));
  decode(blocks, values);
}

}  // namespace distill::data::gguf
