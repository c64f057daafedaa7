#include "kernels/packed_linear/packed_linear.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/packed_linear/block_weight.h"
#include "kernels/packed_linear/tile_kernel.h"
#include "tests/kernels/compare.h"

namespace distill::kernels {
namespace {

struct Shape {
  int64_t tokens, in, out;
};

class PackedLinear : public testing::TestWithParam<Shape> {};

TEST_P(PackedLinear, EqualsTheProductInFp64) {
  const auto [tokens, in, out] = GetParam();
  const at::Tensor x = as_bf16(random({tokens, in}, 1));
  const at::Tensor w = as_bf16(random({out, in}, 2));
  const at::Tensor bias = random({out}, 3).to(at::kFloat);
  const at::Tensor residual = as_bf16(random({tokens, out}, 4));
  const at::Tensor product = x.matmul(w.t());
  const PackedWeight packed = pack_weight(w);
  const at::Tensor x_bf16 = x.to(at::kBFloat16);
  const at::Tensor plain = packed_linear(x_bf16, packed, {}, {}, at::kFloat);
  EXPECT_LT(scaled_error(plain, product), 1e-5);
  const at::Tensor full = packed_linear(x_bf16, packed, bias, residual.to(at::kBFloat16), at::kBFloat16);
  EXPECT_LT(relative_error(full, product + bias + residual), kBf16Rounding);
}

TEST_P(PackedLinear, OfFp32EqualsTheProductInFp64) {
  const auto [tokens, in, out] = GetParam();
  const at::Tensor x = random({tokens, in}, 1).to(at::kFloat);
  const at::Tensor w = random({out, in}, 2).to(at::kFloat);
  const at::Tensor bias = random({out}, 3).to(at::kFloat);
  const at::Tensor residual = random({tokens, out}, 4).to(at::kFloat);
  const at::Tensor product = x.to(at::kDouble).matmul(w.to(at::kDouble).t());
  const PackedWeight packed = pack_weight(w, at::kFloat);
  EXPECT_LT(scaled_error(packed_linear(x, packed, bias, residual, at::kFloat), product + bias + residual), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Shapes, PackedLinear,
                         testing::Values(Shape{1, 64, 64}, Shape{1, 33, 65}, Shape{5, 576, 1}, Shape{6, 2, 130},
                                         Shape{7, 100, 192}, Shape{131, 48, 100}));

TEST(TileKernels, OfEveryInstructionSetHereAgreeForEveryNumberOfRows) {
  constexpr int64_t kInputs = 96;
  const at::Tensor x = random({128, kInputs}, 8).to(at::kBFloat16);
  const at::Tensor w = random({kPanelWidth, kInputs}, 9).to(at::kBFloat16);
  const PackedWeight packed = pack_weight(w);
  const at::Tensor expected = x.to(at::kDouble).matmul(w.to(at::kDouble).t());
  for (const TileKernel<Bf16>* kernel : {amx_tile_kernel(), avx512_tile_kernel(), portable_tile_kernel()}) {
    if (kernel == nullptr) continue;
    at::Tensor whole;
    for (int64_t rows = kernel->max_rows; rows >= 1; --rows) {
      const at::Tensor sums = at::full({rows, kPanelWidth}, NAN);
      kernel->multiply({.x = static_cast<const Bf16*>(x.const_data_ptr()),
                        .panel = static_cast<const Bf16*>(packed.panels.const_data_ptr()),
                        .x_stride = kInputs,
                        .steps = packed.panels.size(1),
                        .sums = sums.mutable_data_ptr<float>()},
                       rows);
      EXPECT_LT(scaled_error(sums, expected.narrow(0, 0, rows)), 1e-5) << rows << " rows";
      if (!whole.defined()) whole = sums;
      EXPECT_TRUE(at::equal(sums, whole.narrow(0, 0, rows))) << rows << " rows";
    }
  }
}

struct BlockFormat {
  at::ScalarType codes;
  bool mins;
};

class PackedBlocks : public testing::TestWithParam<BlockFormat> {
 protected:
  static constexpr int64_t kOut = 130;
  static constexpr int64_t kIn = 96;

  static BlockWeight blocks() {
    const bool four_bits = GetParam().codes == at::kByte;
    const at::Tensor codes = four_bits ? random({kOut, kIn}, 10).mul(4).add(7.5).clamp(0, 15).to(at::kByte)
                                       : random({kOut, kIn}, 10).mul(60).clamp(-128, 127).to(at::kChar);
    const at::Tensor scales = random({kOut, kIn / kBlockInputs}, 11).to(at::kHalf);
    return {.codes = codes,
            .scales = scales,
            .mins = GetParam().mins ? random({kOut, kIn / kBlockInputs}, 12).to(at::kHalf) : at::Tensor()};
  }
  // scale * code + min in fp32, which is exact but for the last rounding.
  static at::Tensor values(const BlockWeight& weight) {
    const auto spread = [](const at::Tensor& x) { return x.to(at::kFloat).repeat_interleave(kBlockInputs, 1); };
    const at::Tensor scaled = weight.codes.to(at::kFloat) * spread(weight.scales);
    return weight.mins.defined() ? scaled + spread(weight.mins) : scaled;
  }
};

TEST_P(PackedBlocks, GiveTheSameBitsAsTheirValuesInBf16) {
  const BlockWeight weight = blocks();
  const PackedWeight packed = pack_weight(weight);
  const PackedWeight plain = pack_weight(values(weight));
  EXPECT_LT(packed.panels.nbytes() + packed.scales.nbytes(), plain.panels.nbytes() * 6 / 10);
  const at::Tensor x = random({40, kIn}, 13).to(at::kBFloat16);
  const at::Tensor expected = packed_linear(x, plain, {}, {}, at::kFloat);
  for (const int64_t rows : {1, 2, 15, 16, 17, 32, 33, 40}) {  // some decode and multiply at once
    EXPECT_TRUE(at::equal(packed_linear(x.narrow(0, 0, rows), packed, {}, {}, at::kFloat), expected.narrow(0, 0, rows)))
        << rows << " rows";
  }
  const at::Tensor ids = at::tensor({0, 129, 64, 63}, at::kLong);
  EXPECT_TRUE(at::equal(packed_rows(packed, ids), packed_rows(plain, ids)));
}

TEST_P(PackedBlocks, AreDecodedAlikeByPortableCode) {
  const PackedWeight packed = pack_weight(blocks());
  for (int64_t i = 0; i < packed.panels.size(0); ++i) {
    const BlockPanel panel{.codes = packed.panels[i].const_data_ptr(),
                           .scales = static_cast<const uint16_t*>(packed.scales[i].const_data_ptr()),
                           .blocks = packed.panels.size(1),
                           .four_bits = packed.panels.scalar_type() == at::kByte,
                           .has_mins = packed.scales.size(2) == 2};
    const at::Tensor fast = at::empty({kIn * kPanelWidth}, at::kBFloat16);
    const at::Tensor portable = at::empty_like(fast);
    decode_panel(panel, static_cast<Bf16*>(fast.mutable_data_ptr()));
    decode_panel_portable(panel, static_cast<Bf16*>(portable.mutable_data_ptr()));
    EXPECT_TRUE(at::equal(fast, portable)) << "panel " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedBlocks,
                         testing::Values(BlockFormat{at::kByte, false}, BlockFormat{at::kByte, true},
                                         BlockFormat{at::kChar, false}, BlockFormat{at::kChar, true}));

TEST(PackedLinearRows, DoNotDependOnTheOtherRows) {
  for (const auto dtype : {at::kBFloat16, at::kFloat}) {
    const at::Tensor x = random({150, 96}, 5).to(dtype);
    const PackedWeight packed = pack_weight(random({200, 96}, 6), dtype);
    const at::Tensor all = packed_linear(x, packed, {}, {}, dtype);
    for (const int64_t row : {0, 5, 77, 149}) {
      const at::Tensor alone = packed_linear(x.narrow(0, row, 1).contiguous(), packed, {}, {}, dtype);
      EXPECT_TRUE(at::equal(alone[0], all[row])) << dtype << " row " << row;
    }
  }
}

TEST(PackedRows, ReturnTheRowsThatWerePacked) {
  for (const auto dtype : {at::kBFloat16, at::kFloat}) {
    const at::Tensor w = random({130, 33}, 7).to(dtype);
    const at::Tensor ids = at::tensor({0, 129, 64, 63, 0}, at::kLong);
    const at::Tensor rows = packed_rows(pack_weight(w, dtype), ids);
    EXPECT_TRUE(at::equal(rows, w.index_select(0, ids))) << dtype;
    EXPECT_TRUE(rows.is_contiguous()) << dtype;
  }
}

}  // namespace
}  // namespace distill::kernels
