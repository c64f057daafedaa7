#include "distill/adamw.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "data/safetensors.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

using testing::HasSubstr;

data::NamedTensors make_parameters() {
  return {{"matrix", at::arange(6, at::kFloat).view({2, 3}).requires_grad_()},
          {"norm", at::ones({3}).requires_grad_()},
          {"unused", at::ones({2, 2}).requires_grad_()}};
}

void set_gradients(data::NamedTensors& parameters, double value) {
  parameters[0].second.mutable_grad() = at::full({2, 3}, value) * at::arange(6).view({2, 3});
  parameters[1].second.mutable_grad() = at::full({3}, -value);
}

TEST(AdamW, FollowsThePublishedAlgorithm) {
  const AdamWOptions options{.beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8, .weight_decay = 0.1};
  auto parameters = make_parameters();
  AdamW optimizer(parameters, options);
  at::Tensor matrix = parameters[0].second.detach().to(at::kDouble).clone();
  at::Tensor m = at::zeros_like(matrix);
  at::Tensor v = at::zeros_like(matrix);
  for (int step = 1; step <= 3; ++step) {
    set_gradients(parameters, 0.1 * step);
    const at::Tensor g = parameters[0].second.grad().to(at::kDouble).clone();
    optimizer.step(0.01);
    m = 0.9 * m + 0.1 * g;
    v = 0.99 * v + 0.01 * g * g;
    const at::Tensor update = m / (1 - std::pow(0.9, step)) / ((v / (1 - std::pow(0.99, step))).sqrt() + 1e-8);
    matrix = matrix - 0.01 * (update + 0.1 * matrix);
  }
  EXPECT_TRUE(at::allclose(parameters[0].second.detach().to(at::kDouble), matrix, 1e-6, 1e-7));
}

TEST(AdamW, DecaysMatricesOnly) {
  auto parameters = make_parameters();
  AdamW optimizer(parameters, {.weight_decay = 0.5});
  set_gradients(parameters, 0.0);
  optimizer.step(0.1);
  EXPECT_TRUE(at::allclose(parameters[0].second, at::arange(6, at::kFloat).view({2, 3}) * 0.95));
  EXPECT_TRUE(parameters[1].second.equal(at::ones({3})));
  EXPECT_TRUE(parameters[2].second.equal(at::ones({2, 2})));  // no gradient, no update
}

TEST(AdamW, DividesGradientsToClipThem) {
  auto clipped = make_parameters();
  auto plain = make_parameters();
  AdamW a(clipped, {});
  AdamW b(plain, {});
  for (const double value : {1.0, 0.3}) {
    set_gradients(clipped, 4 * value);
    a.step(0.1, 4.0);
    set_gradients(plain, value);
    b.step(0.1);
  }
  EXPECT_TRUE(at::allclose(clipped[0].second, plain[0].second, 1e-6, 1e-7));
}

TEST(AdamW, MeasuresTheLengthOfAllGradients) {
  auto parameters = make_parameters();
  const AdamW optimizer(parameters, {});
  set_gradients(parameters, 2.0);
  EXPECT_NEAR(optimizer.gradient_norm(), 2 * std::sqrt(55.0 + 3.0), 1e-5);
}

TEST(AdamW, ContinuesExactlyFromItsSavedState) {
  const TemporaryFolder folder;
  auto straight = make_parameters();
  AdamW a(straight, {});
  for (int step = 1; step <= 4; ++step) {
    set_gradients(straight, step);
    a.step(0.01);
  }
  auto first = make_parameters();
  AdamW b(first, {});
  for (int step = 1; step <= 2; ++step) {
    set_gradients(first, step);
    b.step(0.01);
  }
  data::write_safetensors(folder.path() / "state.safetensors", b.state());
  AdamW c(first, {});
  c.load_state(*data::open_safetensors(folder.path() / "state.safetensors"));
  for (int step = 3; step <= 4; ++step) {
    set_gradients(first, step);
    c.step(0.01);
  }
  EXPECT_TRUE(first[0].second.equal(straight[0].second));
  EXPECT_TRUE(first[1].second.equal(straight[1].second));
}

TEST(AdamW, NamesTheTensorOfAnotherModelsState) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "state.safetensors";
  data::write_safetensors(path, AdamW(make_parameters(), {}).state());
  data::NamedTensors other{{"matrix", at::zeros({4, 4}).requires_grad_()}};
  AdamW optimizer(other, {});
  EXPECT_THAT([&] { optimizer.load_state(*data::open_safetensors(path)); },
              testing::ThrowsMessage<core::Error>(testing::AllOf(
                  HasSubstr(path.string()), HasSubstr("'exp_avg.matrix' is Float [2, 3], expected Float [4, 4]"))));
}

}  // namespace
}  // namespace distill
