#include "data/gguf_blocks.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "core/philox.h"
#include "data/gguf_dequantise.h"

namespace distill::data::gguf {
namespace {

constexpr int64_t kRows = 3;
constexpr int64_t kColumns = 96;

struct Kind {
  TensorType type;
  size_t block_bytes;
  size_t halves;  // fp16 numbers at the beginning of a block
};

class GgufBlocks : public testing::TestWithParam<Kind> {
 protected:
  // Random codes behind finite fp16 numbers, both signs and subnormals among them.
  static std::vector<std::byte> random_blocks() {
    std::vector<std::byte> bytes(kRows * kColumns / 32 * GetParam().block_bytes);
    core::Philox random(3, 0, 0);
    for (auto& byte : bytes) byte = static_cast<std::byte>(random.next_below(256));
    for (size_t block = 0; block < bytes.size(); block += GetParam().block_bytes) {
      for (size_t i = 0; i < GetParam().halves; ++i) {
        const auto half = static_cast<uint16_t>(random.next_below(2) << 15 | random.next_below(0x6800));
        std::memcpy(&bytes[block + 2 * i], &half, sizeof half);
      }
    }
    return bytes;
  }
};

TEST_P(GgufBlocks, HaveTheValuesOfTheDequantisedTensor) {
  const auto bytes = random_blocks();
  std::vector<float> expected(kRows * kColumns);
  dequantise(GetParam().type, bytes, expected);
  const auto weight = block_weight(GetParam().type, bytes, {kRows, kColumns});
  ASSERT_TRUE(weight.has_value());
  EXPECT_TRUE(at::equal(kernels::block_values(*weight), at::tensor(expected).view({kRows, kColumns})));
}

TEST_P(GgufBlocks, AreLeftToDequantisationWhereAScaleIsNotFinite) {
  auto bytes = random_blocks();
  constexpr uint16_t kInfinity = 0x7C00;
  std::memcpy(&bytes[GetParam().block_bytes], &kInfinity, sizeof kInfinity);
  EXPECT_FALSE(block_weight(GetParam().type, bytes, {kRows, kColumns}).has_value());
}

INSTANTIATE_TEST_SUITE_P(Types, GgufBlocks,
                         testing::Values(Kind{TensorType::kQ4_0, 18, 1}, Kind{TensorType::kQ4_1, 20, 2},
                                         Kind{TensorType::kQ8_0, 34, 1}));

}  // namespace
}  // namespace distill::data::gguf
