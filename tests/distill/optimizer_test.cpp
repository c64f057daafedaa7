#include "distill/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "data/safetensors.h"
#include "distill/muon.h"
#include "tests/data/expect_error.h"
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
  const OptimizerOptions options{.beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8, .weight_decay = 0.1};
  auto parameters = make_parameters();
  Optimizer optimizer(parameters, options);
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
  Optimizer optimizer(parameters, {.weight_decay = 0.5});
  set_gradients(parameters, 0.0);
  optimizer.step(0.1);
  EXPECT_TRUE(at::allclose(parameters[0].second, at::arange(6, at::kFloat).view({2, 3}) * 0.95));
  EXPECT_TRUE(parameters[1].second.equal(at::ones({3})));
  EXPECT_TRUE(parameters[2].second.equal(at::ones({2, 2})));  // no gradient, no update
}

TEST(AdamW, DividesGradientsToClipThem) {
  auto clipped = make_parameters();
  auto plain = make_parameters();
  Optimizer a(clipped, {});
  Optimizer b(plain, {});
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
  const Optimizer optimizer(parameters, {});
  set_gradients(parameters, 2.0);
  EXPECT_NEAR(optimizer.gradient_norm(), 2 * std::sqrt(55.0 + 3.0), 1e-5);
}

class Continued : public testing::TestWithParam<OptimizerOptions> {};

TEST_P(Continued, ContinuesExactlyFromItsSavedState) {
  const OptimizerOptions& options = GetParam();
  const TemporaryFolder folder;
  auto straight = make_parameters();
  Optimizer a(straight, options);
  for (int step = 1; step <= 4; ++step) {
    set_gradients(straight, step);
    a.step(0.01);
    a.update_averages(step);
  }
  auto first = make_parameters();
  Optimizer b(first, options);
  for (int step = 1; step <= 2; ++step) {
    set_gradients(first, step);
    b.step(0.01);
    b.update_averages(step);
  }
  const data::NamedTensors saved = b.averaged(first);
  data::write_safetensors(folder.path() / "state.safetensors", b.state());
  first = make_parameters();  // with the checkpoint's weights, which are the averages where there are such
  for (size_t i = 0; i < 3; ++i) first[i].second.detach().copy_(saved[i].second);
  Optimizer c(first, options);
  c.set_state(c.read_state(*data::open_safetensors(folder.path() / "state.safetensors")), nullptr);
  for (int step = 3; step <= 4; ++step) {
    set_gradients(first, step);
    c.step(0.01);
    c.update_averages(step);
  }
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(first[i].second.equal(straight[i].second));
    EXPECT_TRUE(c.averaged(first)[i].second.equal(a.averaged(straight)[i].second));
  }
}

INSTANTIATE_TEST_SUITE_P(Optimizer, Continued,
                         testing::Values(OptimizerOptions{}, OptimizerOptions{.kind = OptimizerKind::kMuon},
                                         OptimizerOptions{.average = 0.9},
                                         OptimizerOptions{.groups = {{.pattern = "norm", .frozen = true}}}));

TEST(Muon, MakesMatricesNearlyOrthogonal) {
  for (const auto& sizes : {std::vector<int64_t>{24, 40}, {40, 24}, {16, 16}}) {
    const at::Tensor x = at::randn(sizes, at::detail::createCPUGenerator(1), at::kFloat);
    const at::Tensor o = orthogonalise(x);
    const at::Tensor values = std::get<1>(at::_linalg_svd(o, false, true));
    EXPECT_GT(values.min().item<double>(), 0.5);
    EXPECT_LT(values.max().item<double>(), 1.3);
    // Towards U V^T, not just any matrix.
    const auto [u, s, v] = at::_linalg_svd(x, false, true);
    const at::Tensor exact = u.matmul(v);
    EXPECT_GT(((o * exact).sum() / (o.norm() * exact.norm())).item<double>(), 0.97);
  }
}

TEST(Muon, FollowsItsFormula) {
  const OptimizerOptions options{.kind = OptimizerKind::kMuon, .momentum = 0.9, .weight_decay = 0.1};
  auto parameters = make_parameters();
  Optimizer optimizer(parameters, options);
  at::Tensor w = parameters[0].second.detach().to(at::kDouble).clone();
  at::Tensor momentum = at::zeros_like(w);
  for (int step = 1; step <= 3; ++step) {
    set_gradients(parameters, 0.1 * step);
    parameters[0].second.mutable_grad().add_(at::tensor({0.5, 0.1, 0.0, 0.0, 0.2, -0.3}).view({2, 3}));
    const at::Tensor g = parameters[0].second.grad().to(at::kDouble) / 2;
    optimizer.step(0.01, 2.0);
    momentum = 0.9 * momentum + g;
    at::Tensor x = g + 0.9 * momentum;
    x = x / x.norm();
    for (int i = 0; i < 5; ++i) {
      const at::Tensor a = x.matmul(x.t());
      x = 3.4445 * x + (-4.7750 * a + 2.0315 * a.matmul(a)).matmul(x);
    }
    w = w * (1 - 0.01 * 0.1) - 0.01 * 0.2 * std::sqrt(3.0) * x;
  }
  EXPECT_TRUE(at::allclose(parameters[0].second.detach().to(at::kDouble), w, 1e-5, 1e-6));
  // The norm goes by AdamW.
  auto plain = make_parameters();
  Optimizer adamw(plain, {.weight_decay = 0.1});
  for (int step = 1; step <= 3; ++step) {
    set_gradients(plain, 0.1 * step);
    adamw.step(0.01, 2.0);
  }
  EXPECT_TRUE(parameters[1].second.equal(plain[1].second));
}

TEST(Muon, LeavesEmbeddingsTheHeadAndProjectorsToAdamW) {
  const auto matrices = [] {
    data::NamedTensors all;
    for (const char* name : {"model.layers.0.mlp.gate_proj.weight", "model.embed_tokens.weight", "lm_head.weight",
                             "projector.0", "projector.11"}) {
      all.emplace_back(name, at::eye(3).requires_grad_());
      all.back().second.mutable_grad() = at::arange(9, at::kFloat).view({3, 3});
    }
    return all;
  };
  auto with_muon = matrices(), with_adamw = matrices();
  Optimizer(with_muon, {.kind = OptimizerKind::kMuon}).step(0.1);
  Optimizer(with_adamw, {}).step(0.1);
  for (size_t i = 0; i < with_muon.size(); ++i) {
    EXPECT_EQ(with_muon[i].second.equal(with_adamw[i].second), i > 0) << with_muon[i].first;
  }
}

TEST(Optimizer, TreatsParametersByTheirGroup) {
  auto parameters = make_parameters();
  Optimizer optimizer(parameters, {.weight_decay = 0.5,
                                   .groups = {{.pattern = "mat*", .learning_rate = 0.5, .weight_decay = 2.0},
                                              {.pattern = "norm", .frozen = true}}});
  EXPECT_FALSE(parameters[1].second.requires_grad());
  EXPECT_EQ(optimizer.trained().size(), 2u);
  parameters[0].second.mutable_grad() = at::zeros({2, 3});
  optimizer.step(0.1);
  EXPECT_TRUE(at::allclose(parameters[0].second, at::arange(6, at::kFloat).view({2, 3}) * (1 - 0.05 * 1.0)));
  EXPECT_TRUE(parameters[1].second.equal(at::ones({3})));
}

TEST(Optimizer, RefusesGroupsThatMatchNothingOrLeaveNothing) {
  const auto error = [](std::vector<ParameterGroup> groups) {
    return error_of([&] { Optimizer(make_parameters(), {.groups = std::move(groups)}); });
  };
  EXPECT_THAT(error({{.pattern = "layers.*"}}), HasSubstr("no parameter matches 'layers.*'"));
  EXPECT_THAT(error({{.pattern = "*", .frozen = true}}), HasSubstr("every parameter is frozen"));
}

TEST(Optimizer, AveragesTheWeightsOverTime) {
  auto parameters = make_parameters();
  Optimizer optimizer(parameters, {.average = 0.75});
  at::Tensor average = parameters[0].second.detach().clone();
  for (int step = 1; step <= 40; ++step) {
    set_gradients(parameters, step);
    optimizer.step(0.01);
    optimizer.update_averages(step);
    const double decay = std::min(0.75, (1.0 + step) / (10.0 + step));
    average = decay * average + (1 - decay) * parameters[0].second.detach();
  }
  const at::Tensor weights = parameters[0].second.detach().clone();
  EXPECT_TRUE(at::allclose(optimizer.averaged(parameters)[0].second, average, 1e-5, 1e-6));
  optimizer.swap_averages();
  EXPECT_TRUE(at::allclose(parameters[0].second, average, 1e-5, 1e-6));
  optimizer.swap_averages();
  EXPECT_TRUE(parameters[0].second.equal(weights));
}

TEST(AdamW, NamesTheTensorOfAnotherModelsState) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "state.safetensors";
  data::write_safetensors(path, Optimizer(make_parameters(), {}).state());
  data::NamedTensors other{{"matrix", at::zeros({4, 4}).requires_grad_()}};
  Optimizer optimizer(other, {});
  EXPECT_THAT([&] { optimizer.read_state(*data::open_safetensors(path)); },
              testing::ThrowsMessage<core::Error>(testing::AllOf(
                  HasSubstr(path.string()), HasSubstr("'exp_avg.matrix' is Float [2, 3], expected Float [4, 4]"))));
}

}  // namespace
}  // namespace distill
