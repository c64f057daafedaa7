#include "kernels/grouped_gemm/grouped_gemm.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/grouped_gemm/reference.h"
#include "tests/kernels/compare.h"

namespace distill::kernels {
namespace {

constexpr at::ScalarType kWeightTypes[] = {at::kFloat, at::kBFloat16, at::kFloat8_e4m3fn};

StoredWeight stored(at::IntArrayRef sizes, uint64_t seed, at::ScalarType type) {
  const at::Tensor weight = as_bf16(random(sizes, seed) / 8);
  if (type == at::kFloat8_e4m3fn) return quantise_fp8(weight);
  return {.values = weight.to(type), .scales = {}};
}

struct Shape {
  int64_t tokens, hidden, intermediate, experts, per_token, shared_intermediate;
};

// Experts 0 to `experts` - 1 routed, then a shared one if it has a size.
ExpertWeights make_experts(const Shape& shape, at::ScalarType type) {
  ExpertWeights weights{.values = {}, .scales = {}, .routed = shape.experts};
  const auto add = [&](int64_t intermediate, uint64_t seed) {
    weights.add(stored({intermediate, shape.hidden}, seed, type), stored({intermediate, shape.hidden}, seed + 1, type),
                stored({shape.hidden, intermediate}, seed + 2, type));
  };
  for (int64_t e = 0; e < shape.experts; ++e) add(shape.intermediate, static_cast<uint64_t>(10 + 3 * e));
  if (shape.shared_intermediate > 0) add(shape.shared_intermediate, 1000);
  check_experts(weights, shape.hidden);
  return weights;
}

struct Routed {
  at::Tensor experts, gates;
};

Routed route(const Shape& shape) {
  const at::Tensor affinity = random({shape.tokens, std::max<int64_t>(shape.experts, 1)}, 1);
  const at::Tensor experts = std::get<1>(affinity.topk(shape.per_token, -1)).to(at::kInt).contiguous();
  return {experts, random({shape.tokens, shape.per_token}, 2).abs().to(at::kFloat)};
}

class GroupedMlp : public testing::TestWithParam<Shape> {};

TEST_P(GroupedMlp, EqualsTheFormulaForEveryStorage) {
  const Shape& shape = GetParam();
  const Routed routed = route(shape);
  const at::Tensor x = as_bf16(random({shape.tokens, shape.hidden}, 3));
  const at::Tensor residual = as_bf16(random({shape.tokens, shape.hidden}, 4));
  for (const at::ScalarType type : kWeightTypes) {
    const ExpertWeights weights = make_experts(shape, type);
    const at::Tensor expected = reference::grouped_mlp(x, routed.experts, routed.gates, weights);
    const at::Tensor fp32 = grouped_mlp(x.to(at::kFloat), routed.experts, routed.gates, weights);
    EXPECT_LT(scaled_error(fp32, expected), 1e-5) << type;
    const at::Tensor bf16 =
        grouped_mlp(x.to(at::kBFloat16), routed.experts, routed.gates, weights, residual.to(at::kBFloat16));
    // Rounded where it passes between the projections and at the end.
    EXPECT_LT(scaled_error(bf16, expected + residual), 8 * kBf16Rounding) << type;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, GroupedMlp,
                         testing::Values(Shape{1, 64, 32, 8, 2, 32}, Shape{7, 100, 50, 5, 3, 70},
                                         Shape{40, 130, 131, 4, 2, 0}, Shape{3, 48, 1, 16, 4, 16},
                                         Shape{17, 33, 20, 0, 0, 129}));

TEST(GroupedMlpTokens, DoNotDependOnTheOtherTokens) {
  const Shape shape{30, 96, 48, 6, 3, 64};
  const Routed routed = route(shape);
  const at::Tensor x = random({30, 96}, 5).to(at::kBFloat16);
  for (const at::ScalarType type : kWeightTypes) {
    const ExpertWeights weights = make_experts(shape, type);
    const at::Tensor all = grouped_mlp(x, routed.experts, routed.gates, weights);
    for (const int64_t t : {0, 13, 29}) {
      const at::Tensor alone = grouped_mlp(x.narrow(0, t, 1), routed.experts.narrow(0, t, 1).contiguous(),
                                           routed.gates.narrow(0, t, 1).contiguous(), weights);
      EXPECT_TRUE(at::equal(alone[0], all[t])) << type << " token " << t;
    }
  }
}

TEST(GroupedMlp, GivesNothingForNoTokens) {
  const Shape shape{0, 32, 16, 2, 1, 16};
  const at::Tensor y = grouped_mlp(at::empty({0, 32}), at::empty({0, 1}, at::kInt), at::empty({0, 1}),
                                   make_experts(shape, at::kBFloat16));
  EXPECT_EQ(y.sizes(), at::IntArrayRef({0, 32}));
}

TEST(GroupedMlp, RefusesExpertsItDoesNotHaveAndWeightsThatDoNotFit) {
  const Shape shape{1, 32, 16, 2, 1, 16};
  ExpertWeights weights = make_experts(shape, at::kFloat);
  for (const int32_t expert : {-1, 2}) {
    EXPECT_THROW(grouped_mlp(at::ones({1, 32}), at::full({1, 1}, expert, at::kInt), at::ones({1, 1}), weights),
                 c10::Error);
  }
  EXPECT_THROW(grouped_mlp(at::ones({1, 32}), at::zeros({1, 2}, at::kInt), at::ones({1, 2}), weights), c10::Error);
  weights.values[4] = at::zeros({15, 32});
  EXPECT_THROW(check_experts(weights, 32), c10::Error);
}

}  // namespace
}  // namespace distill::kernels
