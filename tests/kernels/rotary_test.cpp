#include "kernels/rotary/rotary.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/rotary/reference.h"
#include "tests/kernels/compare.h"

namespace distill::kernels {
namespace {

class Rotary : public testing::Test {
 protected:
  at::Tensor angles_ = 10 * random({5, 12}, 1);
  at::Tensor cos_ = angles_.cos();
  at::Tensor sin_ = angles_.sin();
  at::Tensor cos_fp32_ = cos_.to(at::kFloat);
  at::Tensor sin_fp32_ = sin_.to(at::kFloat);
};

TEST_F(Rotary, EqualsTheFormulaAndPassesTheRestOfAHeadThrough) {
  const at::Tensor x = random({5, 3, 32}, 2);
  EXPECT_LT(relative_error(rotary(x.to(at::kFloat), cos_fp32_, sin_fp32_), reference::rotary(x, cos_, sin_)), 1e-5);
  EXPECT_LT(
      relative_error(rotary(x.to(at::kBFloat16), cos_fp32_, sin_fp32_), reference::rotary(as_bf16(x), cos_, sin_)),
      kBf16Rounding);
}

TEST_F(Rotary, RotatesHeadsInsideAStridedProjection) {
  const at::Tensor heads = random({5, 120}, 3).to(at::kFloat).narrow(1, 10, 72).unflatten(1, {3, 24});
  EXPECT_LT(relative_error(rotary(heads, cos_fp32_, sin_fp32_), reference::rotary(heads, cos_, sin_)), 1e-5);
}

TEST_F(Rotary, OfPairsIsThatOfHalvesInAnotherOrder) {
  const at::Tensor x = random({5, 3, 40}, 6).narrow(2, 8, 24);  // a part of a projection
  const at::Tensor halves = x.unflatten(2, {12, 2}).transpose(2, 3).flatten(2);
  EXPECT_LT(
      relative_error(rotary_of_pairs(x.to(at::kFloat), cos_fp32_, sin_fp32_), reference::rotary(halves, cos_, sin_)),
      1e-5);
  EXPECT_LT(relative_error(rotary_of_pairs(x.to(at::kBFloat16), cos_fp32_, sin_fp32_),
                           reference::rotary(as_bf16(halves), cos_, sin_)),
            kBf16Rounding);
  EXPECT_THROW(rotary_of_pairs(x.narrow(2, 0, 20).to(at::kFloat), cos_fp32_, sin_fp32_), c10::Error);
}

TEST_F(Rotary, HasTheGradientOfTheFormula) {
  expect_same_gradients(
      {random({5, 3, 32}, 4)}, random({5, 3, 32}, 5),
      [&](const auto& in) { return rotary(in[0], cos_fp32_, sin_fp32_); },
      [&](const auto& in) { return reference::rotary(in[0], cos_, sin_); });
}

}  // namespace
}  // namespace distill::kernels
