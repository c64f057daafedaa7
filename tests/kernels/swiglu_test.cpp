#include "kernels/swiglu/swiglu.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/swiglu/reference.h"
#include "tests/kernels/compare.h"

namespace distill::kernels {
namespace {

TEST(Swiglu, EqualsTheFormulaInBothPrecisions) {
  const at::Tensor gate_up = 4 * random({7, 2 * 37}, 1);
  EXPECT_LT(relative_error(swiglu(gate_up.to(at::kFloat)), reference::swiglu(gate_up)), 2e-6);
  EXPECT_LT(relative_error(swiglu(gate_up.to(at::kBFloat16)), reference::swiglu(as_bf16(gate_up))), kBf16Rounding);
}

TEST(Swiglu, StaysFiniteForGatesOfAnySize) {
  const at::Tensor gate_up = at::tensor({-1e30f, 1e30f, -100.0f, 100.0f, 1.0f, 1.0f, 1.0f, 1.0f}).view({1, 8});
  const at::Tensor y = swiglu(gate_up);
  EXPECT_TRUE(at::isfinite(y).all().item<bool>()) << y;
  EXPECT_FLOAT_EQ(y[0][3].item<float>(), 100.0f);
}

TEST(Swiglu, HasTheGradientOfTheFormula) {
  expect_same_gradients(
      {3 * random({5, 2 * 24}, 2)}, random({5, 24}, 3), [](const auto& in) { return swiglu(in[0]); },
      [](const auto& in) { return reference::swiglu(in[0]); });
}

}  // namespace
}  // namespace distill::kernels
