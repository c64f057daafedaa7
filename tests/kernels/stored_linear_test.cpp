#include "kernels/stored_linear/stored_linear.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/fp8/e4m3.h"
#include "kernels/stored_linear/reference.h"
#include "kernels/stored_linear/row_kernels.h"
#include "kernels/stored_linear/row_products.h"
#include "tests/kernels/compare.h"

namespace distill::kernels {
namespace {

StoredWeight stored(const at::Tensor& weight, at::ScalarType type) {
  if (type == at::kFloat8_e4m3fn) return quantise_fp8(weight);
  return {.values = weight.to(type).contiguous(), .scales = {}};
}

constexpr at::ScalarType kWeightTypes[] = {at::kFloat, at::kBFloat16, at::kFloat8_e4m3fn};

TEST(E4m3, DecodesAll256ValuesAsTorchDoes) {
  const at::Tensor bits = at::arange(256, at::kLong).to(at::kByte);
  const at::Tensor expected = bits.view(at::kFloat8_e4m3fn).to(at::kFloat);
  for (int64_t i = 0; i < 256; ++i) {
    const float ours = to_float(E4m3{static_cast<uint8_t>(i)});
    const float theirs = expected[i].item<float>();
    if (std::isnan(theirs)) {
      EXPECT_TRUE(std::isnan(ours)) << i;
    } else {
      EXPECT_EQ(ours, theirs) << i;
    }
  }
}

TEST(QuantisedFp8, ComesWithinOneRoundingOfTheWeightInRaggedBlocks) {
  const at::Tensor weight = random({200, 131}, 1);
  const at::Tensor error = (dequantise(quantise_fp8(weight)).to(at::kDouble) - weight).abs();
  // 3 mantissa bits; below the smallest normal value the step is constant.
  EXPECT_TRUE((error <= weight.abs() * 0x1p-4 + weight.abs().max() / 448 * 0x1p-10 * 1.01).all().item<bool>());
}

TEST(QuantisedFp8, KeepsABlockOfZeros) {
  EXPECT_TRUE(at::equal(dequantise(quantise_fp8(at::zeros({3, 130}))), at::zeros({3, 130})));
}

struct Shape {
  int64_t tokens, in, out;
};

class StoredLinear : public testing::TestWithParam<Shape> {};

TEST_P(StoredLinear, EqualsTheProductInFp64ForEveryStorage) {
  const auto [tokens, in, out] = GetParam();
  const at::Tensor x = as_bf16(random({tokens, in}, 1));
  const at::Tensor bias = random({out}, 2).to(at::kFloat);
  const at::Tensor residual = as_bf16(random({tokens, out}, 3));
  for (const at::ScalarType type : kWeightTypes) {
    const StoredWeight weight = stored(as_bf16(random({out, in}, 4)), type);
    const at::Tensor product = reference::stored_linear(x, weight);
    EXPECT_LT(scaled_error(stored_linear(x.to(at::kFloat), weight, {}, {}, at::kFloat), product), 1e-5) << type;
    EXPECT_LT(scaled_error(stored_linear(x.to(at::kBFloat16), weight, {}, {}, at::kFloat), product), 1e-5) << type;
    const at::Tensor full = stored_linear(x.to(at::kBFloat16), weight, bias, residual.to(at::kBFloat16), at::kBFloat16);
    EXPECT_LT(relative_error(full, product + bias + residual), kBf16Rounding) << type;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, StoredLinear,
                         testing::Values(Shape{1, 64, 32}, Shape{1, 128, 4}, Shape{2, 33, 65}, Shape{3, 200, 7},
                                         Shape{5, 577, 129}, Shape{12, 1, 3}, Shape{13, 300, 140},
                                         Shape{131, 192, 50}));

TEST(StoredLinearRows, DoNotDependOnTheOtherRows) {
  const at::Tensor x = random({150, 200}, 5).to(at::kBFloat16);
  for (const at::ScalarType type : kWeightTypes) {
    const StoredWeight weight = stored(random({70, 200}, 6), type);
    const at::Tensor all = stored_linear(x, weight);
    for (const int64_t count : {1, 2, 5, 9}) {
      EXPECT_TRUE(at::equal(stored_linear(x.narrow(0, 77, count), weight), all.narrow(0, 77, count)))
          << type << " " << count;
    }
  }
}

TEST(StoredLinear, SeesNanInWeightsAndKeepsSmallestValues) {
  StoredWeight weight = quantise_fp8(at::zeros({2, 64}));
  weight.values.view(at::kByte)[0].fill_(1);  // the smallest positive value, 2^-9
  weight.values.view(at::kByte)[1][3] = 0x7F;
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    const at::Tensor y = stored_linear(at::ones({1, 64}, compute), weight, {}, {}, at::kFloat);
    EXPECT_EQ(y[0][0].item<float>(), 64 * 0x1p-9f);
    EXPECT_TRUE(std::isnan(y[0][1].item<float>()));
  }
}

TEST(StoredLinear, RefusesScalesThatDoNotFit) {
  StoredWeight weight = quantise_fp8(at::ones({130, 64}));
  weight.scales = weight.scales.narrow(0, 0, 1);
  EXPECT_THROW(stored_linear(at::ones({1, 64}), weight), c10::Error);
  weight.scales = at::Tensor();
  EXPECT_THROW(stored_linear(at::ones({1, 64}), weight), c10::Error);
}

// The instruction sets of this machine.
std::vector<RowIsa> isas() {
  std::vector<RowIsa> found{RowIsa::kPortable};
  if (has_avx512_rows()) found.push_back(RowIsa::kAvx512Bf16);
  if (has_amx_rows()) found.push_back(RowIsa::kAmx);
  return found;
}

TEST(RowProducts, OfAllInstructionSetsEqualTheFormulaFromAnyRowOn) {
  for (const auto& [tokens, in] : {std::pair<int64_t, int64_t>{7, 300}, {1, 33}, {45, 129}, {150, 64}}) {
    const at::Tensor x = random({tokens, in}, 7).to(at::kBFloat16);
    const at::Tensor x_fp32 = x.to(at::kFloat);
    for (const at::ScalarType type : {at::kBFloat16, at::kFloat8_e4m3fn}) {
      const StoredWeight weight = stored(random({150, in}, 8), type);
      const WeightRows rows = WeightRows::of(weight);
      const at::Tensor expected = reference::stored_linear(x, weight).narrow(1, 3, 147);
      for (const RowIsa isa : isas()) {
        ActivationRows activations(tokens, in, isa, rows.type);
        for (int64_t t = 0; t < tokens; ++t) {  // half of them in parts
          if (t % 2 == 0) {
            activations.set(t, static_cast<const Bf16*>(x[t].const_data_ptr()));
          } else {
            activations.set_part(t, 0, x_fp32[t].const_data_ptr<float>(), 21);
            activations.set_part(t, 21, x_fp32[t].const_data_ptr<float>() + 21, in - 21);
          }
        }
        const at::Tensor y = at::empty({tokens, 147});
        multiply_rows(rows, 3, 147, activations, y.mutable_data_ptr<float>(), 147);
        EXPECT_LT(scaled_error(y, expected), 1e-5) << type << " isa " << static_cast<int>(isa) << " in " << in;
      }
    }
  }
}

TEST(RowProducts, CountEveryFp8ValueExactly) {
  constexpr int64_t kIn = 96;  // a whole step of the vector loops and a part of one
  at::Tensor codes = (at::arange(256).unsqueeze(1) + at::arange(kIn)) % 256;
  codes = at::where(codes % 128 == 127, at::zeros_like(codes), codes).to(at::kByte);  // without NaN
  const StoredWeight weight{.values = codes.view(at::kFloat8_e4m3fn), .scales = at::ones({2, 1})};
  const at::Tensor expected = dequantise(weight).t();
  const at::Tensor x = at::eye(kIn).to(at::kBFloat16);
  for (const RowIsa isa : isas()) {
    ActivationRows activations(kIn, kIn, isa, WeightType::kE4m3);
    for (int64_t t = 0; t < kIn; ++t) activations.set(t, static_cast<const Bf16*>(x[t].const_data_ptr()));
    const at::Tensor y = at::empty({kIn, 256});
    multiply_rows(WeightRows::of(weight), 0, 256, activations, y.mutable_data_ptr<float>(), 256);
    EXPECT_TRUE(at::equal(y, expected)) << "isa " << static_cast<int>(isa);
  }
}

TEST(RowProducts, OfNanAreNan) {
  for (const int64_t code : {0x7F, 0xFF}) {
    at::Tensor codes = at::full({2, 64}, 0x38, at::kByte);
    codes[0][5] = code;
    const StoredWeight weight{.values = codes.view(at::kFloat8_e4m3fn), .scales = at::ones({1, 1})};
    for (const RowIsa isa : isas()) {
      ActivationRows activations(1, 64, isa, WeightType::kE4m3);
      activations.set(0, at::ones({64}).const_data_ptr<float>());
      float y[2] = {};
      multiply_rows(WeightRows::of(weight), 0, 2, activations, y, 2);
      EXPECT_TRUE(std::isnan(y[0])) << "isa " << static_cast<int>(isa);
      EXPECT_EQ(y[1], 64) << "isa " << static_cast<int>(isa);
    }
  }
}

TEST(HeadLinear, MultipliesEachHeadWithItsOwnRows) {
  for (const at::ScalarType type : kWeightTypes) {
    const StoredWeight weight = stored(random({3 * 150, 96}, 9), type);
    const at::Tensor x = as_bf16(random({5, 3, 100}, 10)).narrow(2, 4, 96);  // a part of a projection
    const HeadRows heads{.first = 50, .stride = 150, .rows = 100};
    const at::Tensor expected = reference::head_linear(x, weight, heads);
    EXPECT_LT(scaled_error(head_linear(x.to(at::kFloat), weight, heads), expected), 1e-5) << type;
    EXPECT_LT(relative_error(head_linear(x.to(at::kBFloat16), weight, heads), expected), kBf16Rounding) << type;
  }
  EXPECT_THROW(head_linear(at::ones({1, 2, 8}), stored(at::ones({10, 8}), at::kFloat), {0, 6, 6}), c10::Error);
}

}  // namespace
}  // namespace distill::kernels
