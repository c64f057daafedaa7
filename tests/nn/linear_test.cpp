#include "nn/linear.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/kernels/compare.h"

namespace distill::nn {
namespace {

using kernels::as_bf16;
using kernels::kBf16Rounding;
using kernels::random;
using kernels::relative_error;
using kernels::scaled_error;

constexpr int64_t kTokens = 5;
constexpr int64_t kIn = 48;

struct Form {
  ModelOptions options;
  double tolerance;
};

class LinearForms : public testing::TestWithParam<Form> {};

TEST_P(LinearForms, MultiplyPartsSideBySide) {
  const auto [options, tolerance] = GetParam();
  const at::Tensor x = as_bf16(random({kTokens, kIn}, 1));
  const at::Tensor a = as_bf16(random({70, kIn}, 2));
  const at::Tensor b = as_bf16(random({30, kIn}, 3));
  const at::Tensor a_bias = as_bf16(random({70}, 4));
  const at::Tensor b_bias = as_bf16(random({30}, 5));
  const at::Tensor residual = as_bf16(random({kTokens, 100}, 6));
  const auto dtype = options.trainable ? at::kFloat : at::kBFloat16;  // as stored
  const Linear linear({{a.to(dtype), a_bias.to(dtype)}, {b.to(dtype), b_bias.to(dtype)}}, options);
  const at::Tensor expected = at::cat({x.matmul(a.t()) + a_bias, x.matmul(b.t()) + b_bias}, 1);
  const at::Tensor input = x.to(options.compute);
  EXPECT_LT(relative_error(linear.forward(input), expected), tolerance);
  // Scaled, because a sum that was rounded before may cancel with the residual.
  EXPECT_LT(scaled_error(linear.forward(input, residual.to(options.compute)), expected + residual), 4 * tolerance);
  EXPECT_EQ(linear.forward(input).scalar_type(), options.compute);
  EXPECT_LT(scaled_error(linear.forward_fp32(input), expected), 1e-5);
}

TEST_P(LinearForms, GiveTheirWeightBack) {
  const ModelOptions& options = GetParam().options;
  const at::Tensor w = as_bf16(random({70, kIn}, 2)).to(at::kFloat);
  const Linear linear({{w, {}}}, options);
  EXPECT_TRUE(at::equal(linear.weight().to(at::kFloat), w));
  const at::Tensor ids = at::tensor({69, 0, 69}, at::kLong);
  EXPECT_TRUE(at::equal(linear.rows(ids), w.index_select(0, ids).to(options.compute)));
}

INSTANTIATE_TEST_SUITE_P(Forms, LinearForms,
                         testing::Values(Form{{.compute = at::kFloat, .trainable = false}, 1e-5},
                                         Form{{.compute = at::kBFloat16, .trainable = false}, kBf16Rounding},
                                         Form{{.compute = at::kFloat, .trainable = true}, 1e-5},
                                         Form{{.compute = at::kBFloat16, .trainable = true}, kBf16Rounding}));

TEST(Linear, PassesGradientsToTheFp32LeavesOfItsParts) {
  at::Tensor a = random({8, kIn}, 1).to(at::kFloat).requires_grad_();
  at::Tensor b = random({4, kIn}, 2).to(at::kFloat).requires_grad_();
  const Linear linear({{a, {}}, {b, {}}}, {.compute = at::kBFloat16, .trainable = true});
  const at::Tensor x = as_bf16(random({kTokens, kIn}, 3));
  const at::Tensor upstream = as_bf16(random({kTokens, 12}, 4));
  (linear.forward(x.to(at::kBFloat16)) * upstream.to(at::kBFloat16)).sum().backward();
  const at::Tensor expected = upstream.t().matmul(x);
  EXPECT_EQ(a.grad().scalar_type(), at::kFloat);
  EXPECT_LT(scaled_error(a.grad(), expected.narrow(0, 0, 8)), 0.02);
  EXPECT_LT(scaled_error(b.grad(), expected.narrow(0, 8, 4)), 0.02);
}

TEST(Linear, RefusesPartsThatDoNotFit) {
  EXPECT_THROW(Linear({{at::zeros({4, 8}), {}}, {at::zeros({4, 7}), {}}}, {}), c10::Error);
  EXPECT_THROW(Linear({{at::zeros({4, 8}), at::zeros({4})}, {at::zeros({4, 8}), {}}}, {}), c10::Error);
  EXPECT_THROW(Linear({{at::zeros({4, 8}), at::zeros({5})}}, {}), c10::Error);
}

// A weight of 64 inputs in blocks, with its values.
Linear::Part block_part(int64_t out, at::ScalarType codes, uint64_t seed) {
  return {.blocks = kernels::BlockWeight{.codes = random({out, 64}, seed).mul(3).add(8).clamp(0, 15).to(codes),
                                         .scales = random({out, 2}, seed + 1).to(at::kHalf),
                                         .mins = {}}};
}

TEST(LinearOfBlocks, GivesTheSameBitsAsTheirValuesWhetherTheyAreOfOneKindOrNot) {
  const at::Tensor x = random({kTokens, 64}, 20).to(at::kBFloat16);
  for (const auto& second_kind : {at::kByte, at::kChar}) {
    const std::vector<Linear::Part> blocks{block_part(70, at::kByte, 21), block_part(30, second_kind, 23)};
    std::vector<Linear::Part> values;
    for (const auto& part : blocks) values.push_back({.weight = kernels::block_values(*part.blocks)});
    const ModelOptions options{.compute = at::kBFloat16};
    EXPECT_TRUE(at::equal(Linear(blocks, options).forward(x), Linear(values, options).forward(x)));
  }
}

}  // namespace
}  // namespace distill::nn
