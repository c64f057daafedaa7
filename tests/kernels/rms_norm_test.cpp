#include "kernels/rms_norm/rms_norm.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/rms_norm/reference.h"
#include "tests/kernels/compare.h"

namespace distill::kernels {
namespace {

TEST(RmsNorm, EqualsTheFormulaInBothPrecisions) {
  for (const int64_t size : {1, 7, 64, 577}) {
    const at::Tensor x = random({5, size}, 1);
    const at::Tensor weight = random({size}, 2);
    const at::Tensor expected = reference::rms_norm(x, weight, 1e-5);
    EXPECT_LT(relative_error(rms_norm(x.to(at::kFloat), weight.to(at::kFloat), 1e-5), expected), 1e-6);
    const at::Tensor rounded = reference::rms_norm(as_bf16(x), as_bf16(weight), 1e-5);
    EXPECT_LT(relative_error(rms_norm(x.to(at::kBFloat16), weight.to(at::kBFloat16), 1e-5), rounded), kBf16Rounding);
  }
}

TEST(RmsNorm, NormalisesHeadsInsideAStridedProjection) {
  const at::Tensor projection = random({4, 3 * 16 + 8}, 3).to(at::kFloat);
  const at::Tensor heads = projection.narrow(1, 8, 48).unflatten(1, {3, 16});
  const at::Tensor weight = random({16}, 4).to(at::kFloat);
  EXPECT_LT(relative_error(rms_norm(heads, weight, 1e-6), reference::rms_norm(heads, weight, 1e-6)), 1e-6);
}

TEST(RmsNorm, HasTheGradientOfTheFormula) {
  const at::Tensor x = random({6, 40}, 5);
  const at::Tensor weight = random({40}, 6);
  const at::Tensor upstream = random({6, 40}, 7);
  expect_same_gradients(
      {x, weight}, upstream, [](const auto& in) { return rms_norm(in[0], in[1], 1e-5); },
      [](const auto& in) { return reference::rms_norm(in[0], in[1], 1e-5); });
}

}  // namespace
}  // namespace distill::kernels
