#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/rms_norm/reference.h"
#include "kernels/rms_norm/rms_norm_kernels.cuh"
#include "tests/kernels/compare.h"
#include "tests/simt/launch.h"

namespace distill::kernels::cuda {
namespace {

template <typename T>
class RmsNormKernel : public testing::Test {
 protected:
  static constexpr double kTolerance = sizeof(T) == sizeof(float) ? 2e-6 : kBf16Rounding;
};
TYPED_TEST_SUITE(RmsNormKernel, BothTypes);

TYPED_TEST(RmsNormKernel, EqualsTheFormula) {
  using T = TypeParam;
  for (const int64_t size : {1, 7, 64, 577}) {
    const Rounded<T> x(random({5, size}, 1));
    const at::Tensor weight = random({size}, 2).to(at::kFloat);
    const at::Tensor y = at::empty({5, size}, scalar_type_of<T>());
    const RmsNormArguments<T> arguments{data<T>(x.stored), data<float>(weight), data<T>(y), RowLayout::of(x.stored),
                                        1e-5f};
    launch(rms_norm_shape(arguments), rms_norm_kernel<T>, arguments, {y});
    EXPECT_LT(relative_error(y, reference::rms_norm(x.exact, weight.to(at::kDouble), 1e-5)), this->kTolerance);
  }
}

TYPED_TEST(RmsNormKernel, NormalisesHeadsInsideAStridedProjection) {
  using T = TypeParam;
  const Rounded<T> projection(random({4, 3 * 16 + 8}, 3));
  const auto heads_of = [](const at::Tensor& x) { return x.narrow(1, 8, 48).unflatten(1, {3, 16}); };
  const at::Tensor weight = random({16}, 4).to(at::kFloat);
  const at::Tensor y = at::empty({4, 3, 16}, scalar_type_of<T>());
  const at::Tensor heads = heads_of(projection.stored);
  const RmsNormArguments<T> arguments{data<T>(heads), data<float>(weight), data<T>(y), RowLayout::of(heads), 1e-6f};
  launch(rms_norm_shape(arguments), rms_norm_kernel<T>, arguments, {y});
  EXPECT_LT(relative_error(y, reference::rms_norm(heads_of(projection.exact), weight.to(at::kDouble), 1e-6)),
            this->kTolerance);
}

TYPED_TEST(RmsNormKernel, HasTheGradientOfTheFormula) {
  using T = TypeParam;
  for (const auto& [rows, size] : {std::pair<int64_t, int64_t>{3, 40}, {130, 300}}) {
    const Rounded<T> x(random({rows, size}, 5));
    const Rounded<T> grad(random({rows, size}, 6));
    const at::Tensor weight = random({size}, 7).to(at::kFloat);
    const at::Tensor grad_x = at::empty({rows, size}, scalar_type_of<T>());
    const at::Tensor grad_weight = at::empty({kRmsNormParts, size});
    const RmsNormBackwardArguments<T> arguments{data<T>(grad.stored),
                                                data<T>(x.stored),
                                                data<float>(weight),
                                                data<T>(grad_x),
                                                data<float>(grad_weight),
                                                RowLayout::of(x.stored),
                                                1e-5f};
    launch(rms_norm_backward_shape(arguments), rms_norm_backward_kernel<T>, arguments, {grad_x, grad_weight});

    const at::Tensor x_leaf = x.exact.clone().requires_grad_();
    const at::Tensor weight_leaf = weight.to(at::kDouble).requires_grad_();
    (reference::rms_norm(x_leaf, weight_leaf, 1e-5) * grad.exact).sum().backward();
    EXPECT_LT(relative_error(grad_x, x_leaf.grad()), std::max(1e-4, this->kTolerance));
    EXPECT_LT(scaled_error(grad_weight.sum(0), weight_leaf.grad()), 1e-5);
  }
}

}  // namespace
}  // namespace distill::kernels::cuda
