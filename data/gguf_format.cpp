#include "data/gguf_format.h"

#include <array>

namespace distill::data::gguf {
namespace {

constexpr std::array kLayouts{
    BlockLayout{TensorType::kF32, "F32", 1, 4},           BlockLayout{TensorType::kF16, "F16", 1, 2},
    BlockLayout{TensorType::kQ4_0, "Q4_0", 32, 18},       BlockLayout{TensorType::kQ4_1, "Q4_1", 32, 20},
    BlockLayout{TensorType::kQ5_0, "Q5_0", 32, 22},       BlockLayout{TensorType::kQ5_1, "Q5_1", 32, 24},
    BlockLayout{TensorType::kQ8_0, "Q8_0", 32, 34},       BlockLayout{TensorType::kQ2_K, "Q2_K", 256, 84},
    BlockLayout{TensorType::kQ3_K, "Q3_K", 256, 110},     BlockLayout{TensorType::kQ4_K, "Q4_K", 256, 144},
    BlockLayout{TensorType::kQ5_K, "Q5_K", 256, 176},     BlockLayout{TensorType::kQ6_K, "Q6_K", 256, 210},
    BlockLayout{TensorType::kQ8_K, "Q8_K", 256, 292},     BlockLayout{TensorType::kIQ2_XXS, "IQ2_XXS", 256, 66},
    BlockLayout{TensorType::kIQ2_XS, "IQ2_XS", 256, 74},  BlockLayout{TensorType::kIQ3_XXS, "IQ3_XXS", 256, 98},
    BlockLayout{TensorType::kIQ1_S, "IQ1_S", 256, 50},    BlockLayout{TensorType::kIQ4_NL, "IQ4_NL", 32, 18},
    BlockLayout{TensorType::kIQ3_S, "IQ3_S", 256, 110},   BlockLayout{TensorType::kIQ2_S, "IQ2_S", 256, 82},
    BlockLayout{TensorType::kIQ4_XS, "IQ4_XS", 256, 136}, BlockLayout{TensorType::kI8, "I8", 1, 1},
    BlockLayout{TensorType::kI16, "I16", 1, 2},           BlockLayout{TensorType::kI32, "I32", 1, 4},
    BlockLayout{TensorType::kI64, "I64", 1, 8},           BlockLayout{TensorType::kF64, "F64", 1, 8},
    BlockLayout{TensorType::kIQ1_M, "IQ1_M", 256, 56},    BlockLayout{TensorType::kBF16, "BF16", 1, 2},
    BlockLayout{TensorType::kTQ1_0, "TQ1_0", 256, 54},    BlockLayout{TensorType::kTQ2_0, "TQ2_0", 256, 66},
    BlockLayout{TensorType::kMXFP4, "MXFP4", 32, 17},     BlockLayout{TensorType::kNVFP4, "NVFP4", 64, 36},
    BlockLayout{TensorType::kQ1_0, "Q1_0", 128, 18},
};

struct ValueLayout {
  std::string_view name;
  uint64_t bytes;
};

// By the number of the ValueType.
constexpr std::array<ValueLayout, 13> kValues{{{"u8", 1},
                                               {"i8", 1},
                                               {"u16", 2},
                                               {"i16", 2},
                                               {"u32", 4},
                                               {"i32", 4},
                                               {"f32", 4},
                                               {"bool", 1},
                                               {"string", 0},
                                               {"array", 0},
                                               {"u64", 8},
                                               {"i64", 8},
                                               {"f64", 8}}};

}  // namespace

std::string_view name(ValueType type) {
  const auto number = static_cast<uint32_t>(type);
  return number < kValues.size() ? kValues[number].name : "unknown";
}

uint64_t value_bytes(ValueType type) {
  const auto number = static_cast<uint32_t>(type);
  return number < kValues.size() ? kValues[number].bytes : 0;
}

const BlockLayout* block_layout(uint32_t type) {
  for (const auto& layout : kLayouts) {
    if (static_cast<uint32_t>(layout.type) == type) return &layout;
  }
  return nullptr;
}

const BlockLayout* block_layout(std::string_view name) {
  for (const auto& layout : kLayouts) {
    if (layout.name == name) return &layout;
  }
  return nullptr;
}

}  // namespace distill::data::gguf
