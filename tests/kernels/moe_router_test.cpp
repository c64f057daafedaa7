#include "kernels/moe_router/moe_router.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/moe_router/reference.h"
#include "tests/kernels/compare.h"

namespace distill::kernels {
namespace {

class MoeRouter : public testing::TestWithParam<RouterOptions> {};

TEST_P(MoeRouter, ChoosesAsTheFormulaWithAndWithoutBias) {
  const at::Tensor logits = random({200, 24}, 1).to(at::kFloat);
  for (const at::Tensor& bias : {at::Tensor(), random({24}, 2).to(at::kFloat)}) {
    const Routing ours = moe_router(logits, bias, GetParam());
    const Routing formula = reference::moe_router(logits, bias, GetParam());
    EXPECT_TRUE(at::equal(ours.experts, formula.experts));
    EXPECT_LT(relative_error(ours.gates, formula.gates), 1e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Options, MoeRouter,
    testing::Values(
        RouterOptions{.experts_per_token = 4, .scoring = RouterScoring::kSoftmax, .normalise = false, .scaling = 16},
        RouterOptions{.experts_per_token = 1}, RouterOptions{.experts_per_token = 24, .scaling = 2.5},
        RouterOptions{.experts_per_token = 6, .groups = 4, .groups_per_token = 2, .scaling = 2.5},
        RouterOptions{.experts_per_token = 6, .groups = 12, .groups_per_token = 3, .normalise = false},
        RouterOptions{.experts_per_token = 3,
                      .scoring = RouterScoring::kSoftmax,
                      .groups = 8,
                      .groups_per_token = 3,
                      .group_scoring = GroupScoring::kMaximum}));

TEST(MoeRouterBias, ChangesTheChoiceAndNeverTheGate) {
  const at::Tensor logits = at::tensor({3.0f, 2.0f, 1.0f, 0.0f}).view({1, 4});
  const at::Tensor bias = at::tensor({0.0f, 0.0f, 0.0f, 10.0f});
  const Routing routing = moe_router(logits, bias, {.experts_per_token = 2, .normalise = false});
  EXPECT_TRUE(at::equal(routing.experts, at::tensor({3, 0}, at::kInt).view({1, 2})));
  EXPECT_FLOAT_EQ(routing.gates[0][0].item<float>(), 0.5f);
}

TEST(MoeRouter, GivesTiesToTheFirstExpert) {
  const Routing routing =
      moe_router(at::zeros({1, 8}), {}, {.experts_per_token = 3, .groups = 4, .groups_per_token = 2});
  EXPECT_TRUE(at::equal(routing.experts, at::tensor({0, 1, 2}, at::kInt).view({1, 3})));
}

TEST(MoeRouter, NeverLeavesTheChosenGroupsEvenIfTheirAffinitiesAreNegative) {
  // A bias may push every affinity of the best groups below zero.
  const at::Tensor bias = at::tensor({-5.0f, -5.0f, -9.0f, -9.0f});
  const Routing routing =
      moe_router(at::zeros({1, 4}), bias, {.experts_per_token = 2, .groups = 2, .groups_per_token = 1});
  EXPECT_TRUE(at::equal(routing.experts, at::tensor({0, 1}, at::kInt).view({1, 2})));
}

TEST(MoeRouter, RefusesNanAndChoicesThatCannotBeMade) {
  EXPECT_THROW(moe_router(at::full({1, 4}, NAN), {}, {}), c10::Error);
  EXPECT_THROW(moe_router(at::zeros({1, 4}), {}, {.experts_per_token = 5}), c10::Error);
  EXPECT_THROW(moe_router(at::zeros({1, 4}), {}, {.experts_per_token = 3, .groups = 2}), c10::Error);
  EXPECT_THROW(moe_router(at::zeros({1, 4}), {}, {.groups = 3}), c10::Error);
}

}  // namespace
}  // namespace distill::kernels
