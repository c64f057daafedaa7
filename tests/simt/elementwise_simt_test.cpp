// The kernels that work element by element: rotary, swiglu, the end of packed_linear.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/packed_linear/packed_linear_kernels.cuh"
#include "kernels/rotary/reference.h"
#include "kernels/rotary/rotary_kernels.cuh"
#include "kernels/swiglu/reference.h"
#include "kernels/swiglu/swiglu_kernels.cuh"
#include "tests/kernels/compare.h"
#include "tests/simt/launch.h"

namespace distill::kernels::cuda {
namespace {

template <typename T>
class ElementwiseKernel : public testing::Test {
 protected:
  static constexpr double kTolerance = sizeof(T) == sizeof(float) ? 1e-5 : kBf16Rounding;
};
TYPED_TEST_SUITE(ElementwiseKernel, BothTypes);

// More elements than threads, so that the kernels' strides are used.
constexpr LaunchShape kFewThreads{.grid = 2, .block = 64};

TYPED_TEST(ElementwiseKernel, RotatesHeadsInsideAProjectionAndPassesTheRestThrough) {
  using T = TypeParam;
  const Rounded<T> projection(random({5, 3 * 32 + 10}, 1));
  const auto heads_of = [](const at::Tensor& x) { return x.narrow(1, 10, 96).unflatten(1, {3, 32}); };
  const at::Tensor heads = heads_of(projection.stored);
  const at::Tensor angles = 10 * random({5, 12}, 2);
  const at::Tensor cos = angles.cos().to(at::kFloat);
  const at::Tensor sin = angles.sin().to(at::kFloat);
  const at::Tensor y = at::empty({5, 3, 32}, scalar_type_of<T>());
  const RotaryArguments<T> arguments{.x = data<T>(heads),
                                     .cos = data<float>(cos),
                                     .sin = data<float>(sin),
                                     .y = data<T>(y),
                                     .tokens = 5,
                                     .heads = 3,
                                     .dim = 32,
                                     .half = 12,
                                     .token_stride = heads.stride(0)};
  const at::Tensor expected = reference::rotary(heads_of(projection.exact), angles.cos(), angles.sin());
  for (const auto& shape : {elementwise(arguments.work()), kFewThreads}) {
    launch(shape, rotary_kernel<T>, arguments, {y});
    EXPECT_LT(relative_error(y, expected), this->kTolerance);
  }
}

TYPED_TEST(ElementwiseKernel, GatesAsTheFormulaSays) {
  using T = TypeParam;
  const Rounded<T> gate_up(4 * random({7, 2 * 37}, 3));
  const at::Tensor y = at::empty({7, 37}, scalar_type_of<T>());
  const SwigluArguments<T> arguments{data<T>(gate_up.stored), data<T>(y), 7, 37};
  for (const auto& shape : {elementwise(7 * 37), kFewThreads}) {
    launch(shape, swiglu_kernel<T>, arguments, {y});
    EXPECT_LT(relative_error(y, reference::swiglu(gate_up.exact)), this->kTolerance);
  }
}

TYPED_TEST(ElementwiseKernel, GatesStayFiniteForInputsOfAnySize) {
  using T = TypeParam;
  const Rounded<T> gate_up(at::tensor({-1e30, 1e30, -100.0, 100.0, 1.0, 1.0, 1.0, 1.0}).view({1, 8}));
  const at::Tensor y = at::empty({1, 4}, scalar_type_of<T>());
  const SwigluArguments<T> arguments{data<T>(gate_up.stored), data<T>(y), 1, 4};
  launch(elementwise(4), swiglu_kernel<T>, arguments, {y});
  EXPECT_TRUE(at::isfinite(y).all().item<bool>()) << y;
}

TYPED_TEST(ElementwiseKernel, GatesHaveTheGradientOfTheFormula) {
  using T = TypeParam;
  const Rounded<T> gate_up(3 * random({5, 2 * 24}, 4));
  const Rounded<T> grad(random({5, 24}, 5));
  const at::Tensor grad_gate_up = at::empty({5, 48}, scalar_type_of<T>());
  const SwigluBackwardArguments<T> arguments{data<T>(grad.stored), data<T>(gate_up.stored), data<T>(grad_gate_up), 5,
                                             24};
  const at::Tensor leaf = gate_up.exact.clone().requires_grad_();
  (reference::swiglu(leaf) * grad.exact).sum().backward();
  for (const auto& shape : {elementwise(5 * 24), kFewThreads}) {
    launch(shape, swiglu_backward_kernel<T>, arguments, {grad_gate_up});
    EXPECT_LT(relative_error(grad_gate_up, leaf.grad()), this->kTolerance);
  }
}

TYPED_TEST(ElementwiseKernel, LinearAddsBiasAndResidualAndRoundsOnce) {
  using T = TypeParam;
  const at::Tensor product = random({6, 50}, 6).to(at::kFloat);
  const at::Tensor bias = random({50}, 7).to(at::kFloat);
  const Rounded<T> residual(random({6, 50}, 8));
  const at::Tensor y = at::empty({6, 50}, scalar_type_of<T>());
  FinishLinearArguments<T, T> arguments{
      data<float>(product), data<float>(bias), data<T>(residual.stored), data<T>(y), 6, 50};
  for (const auto& shape : {elementwise(6 * 50), kFewThreads}) {
    launch(shape, finish_linear_kernel<T, T>, arguments, {y});
    EXPECT_LT(relative_error(y, product.to(at::kDouble) + bias + residual.exact), this->kTolerance);
  }
  arguments.bias = nullptr;
  arguments.residual = nullptr;
  launch(elementwise(6 * 50), finish_linear_kernel<T, T>, arguments, {y});
  EXPECT_TRUE(at::equal(y, product.to(scalar_type_of<T>())));
}

}  // namespace
}  // namespace distill::kernels::cuda
