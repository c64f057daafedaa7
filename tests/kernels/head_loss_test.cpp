#include "kernels/head_loss/head_loss.h"

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "kernels/head_loss/reference.h"
#include "tests/kernels/compare.h"

namespace distill::kernels {
namespace {

struct Case {
  int64_t tokens = 40;
  int64_t targets = 24;
  int64_t size = 48;
  int64_t vocab = 1000;
  int64_t ids = 12;  // per target; `vocab` for full targets
  double temperature = 1.0;
};

struct Problem {
  at::Tensor hidden, weight;  // fp64
  HeadLossTargets targets;
  at::Tensor token_weights;
};

Problem make_inputs(const Case& c) {
  Problem in;
  in.hidden = random({c.tokens, c.size}, 1);
  in.weight = random({c.vocab, c.size}, 2) * 0.3;
  const at::Tensor teacher = at::softmax(2 * random({c.targets, c.vocab}, 3), -1);
  const auto [q, ids] = teacher.topk(c.ids, -1, /*largest=*/true, /*sorted=*/false);
  in.targets = {.rows = at::randperm(c.tokens, at::detail::createCPUGenerator(4), at::kLong).narrow(0, 0, c.targets),
                .labels = teacher.argmax(-1),
                .offsets = at::arange(c.targets + 1) * c.ids,
                .ids = ids.flatten(),
                .weights = q.flatten().to(at::kFloat),
                .uncovered = (1 - q.sum(-1)).clamp_min(0).to(at::kFloat)};
  // One label lies outside its target's ids.
  in.targets.labels[0] = teacher[0].argmin();
  in.token_weights = random({c.targets}, 5).abs().to(at::kFloat);
  return in;
}

// Length of the error relative to the length of what is expected.
double norm_error(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor reference = expected.to(at::kDouble);
  return (actual.to(at::kDouble) - reference).norm().item<double>() / reference.norm().item<double>();
}

constexpr Divergence kAll[] = {Divergence::kForwardKl,      Divergence::kReverseKl,     Divergence::kJensenShannon,
                               Divergence::kTotalVariation, Divergence::kSkewForwardKl, Divergence::kSkewReverseKl};

// The same positions with a teacher that is here.
Problem with_teacher(Problem in, int64_t vocab, int64_t size = 20) {
  const int64_t count = in.targets.rows.numel();
  in.targets = {.rows = in.targets.rows,
                .labels = in.targets.labels,
                .teacher_hidden = random({count, size}, 6),
                .teacher_weight = random({vocab, size}, 7) * 0.5};
  return in;
}

HeadLossTargets in_dtype(HeadLossTargets targets, at::ScalarType dtype) {
  if (targets.teacher_hidden.defined()) {
    targets.teacher_hidden = targets.teacher_hidden.to(dtype);
    targets.teacher_weight = targets.teacher_weight.to(dtype);
  }
  return targets;
}

struct Outcome {
  HeadLoss loss;
  at::Tensor grad_hidden, grad_weight;
};

template <typename Function>
Outcome run(const Function& function, const Problem& in, const HeadLossOptions& options, at::ScalarType hidden_dtype,
            at::ScalarType weight_dtype) {
  const at::Tensor hidden = in.hidden.to(hidden_dtype).clone().requires_grad_();
  const at::Tensor weight = in.weight.to(weight_dtype).clone().requires_grad_();
  Outcome outcome;
  outcome.loss = function(hidden, weight, in_dtype(in.targets, hidden_dtype), options, 1.0 / 7, in.token_weights);
  outcome.loss.loss.backward();
  outcome.grad_hidden = hidden.grad();
  outcome.grad_weight = weight.grad();
  return outcome;
}

// The same numbers as both dtypes hold them.
Problem rounded_to_fp32(Problem in) {
  const auto round = [](at::Tensor& x) {
    if (x.defined()) x = x.to(at::kFloat).to(at::kDouble);
  };
  for (auto* tensor : {&in.hidden, &in.weight, &in.targets.teacher_hidden, &in.targets.teacher_weight}) round(*tensor);
  return in;
}

// Debug and sanitizer builds are not vectorised: one accumulator where there are sixteen loses more digits.
#if !defined(NDEBUG) || defined(__SANITIZE_ADDRESS__)
constexpr double kBound = 4e-6;
#else
constexpr double kBound = 1e-6;
#endif

void expect_equal(const Problem& original, const HeadLossOptions& options) {
  const Problem in = rounded_to_fp32(original);
  const Outcome ours = run(head_loss, in, options, at::kFloat, at::kFloat);
  const Outcome theirs = run(reference::head_loss, in, options, at::kDouble, at::kDouble);
  EXPECT_LT(relative_error(ours.loss.loss, theirs.loss.loss), kBound);
  EXPECT_LT(norm_error(ours.loss.divergence, theirs.loss.divergence), kBound);
  EXPECT_LT(norm_error(ours.loss.cross_entropy, theirs.loss.cross_entropy), kBound);
  EXPECT_LT(norm_error(ours.loss.kl, theirs.loss.kl), kBound);
  EXPECT_LT(norm_error(ours.loss.confidence, theirs.loss.confidence), kBound);
  EXPECT_LT(norm_error(ours.loss.factors, theirs.loss.factors), kBound);
  EXPECT_TRUE(ours.loss.top_ids.equal(theirs.loss.top_ids));
  EXPECT_TRUE(ours.loss.teacher_top_ids.equal(theirs.loss.teacher_top_ids));
  // Of whole distributions in fp32, some divergences take differences of like numbers.
  const bool whole =
      !in.targets.offsets.defined() || in.targets.ids.numel() == in.targets.rows.numel() * in.weight.size(0);
  const double tolerance = whole && options.kind != Divergence::kForwardKl ? 3 * kBound : kBound;
  EXPECT_LT(norm_error(ours.grad_hidden, theirs.grad_hidden), tolerance);
  EXPECT_LT(norm_error(ours.grad_weight, theirs.grad_weight), tolerance);
}

TEST(HeadLoss, EqualsTheUnfusedFormulaInFp64) {
  expect_equal(make_inputs({}), {});
  expect_equal(make_inputs({}), {.divergence = 0.7, .cross_entropy = 0.3});
  expect_equal(make_inputs({}), {.divergence = 0.0, .cross_entropy = 1.0});
  expect_equal(make_inputs({.vocab = 517, .ids = 1}), {.divergence = 0.5, .cross_entropy = 0.5});
}

TEST(HeadLoss, EqualsTheUnfusedFormulaAtATemperature) {
  expect_equal(make_inputs({}), {.temperature = 2.0});
  expect_equal(make_inputs({}), {.divergence = 0.7, .cross_entropy = 0.3, .temperature = 2.5});
}

TEST(HeadLoss, EqualsTheUnfusedFormulaWithRenormalisedTargets) {
  expect_equal(make_inputs({}), {.divergence = 0.7, .cross_entropy = 0.3, .tail = TailRule::kRenormalise});
}

TEST(HeadLoss, EqualsTheUnfusedFormulaOnFullTargets) {
  const Case full{.vocab = 300, .ids = 300};
  expect_equal(make_inputs(full), {.divergence = 0.7, .cross_entropy = 0.3});
}

TEST(HeadLoss, EveryDivergenceEqualsItsFormulaInFp64) {
  const Problem truncated = make_inputs({});
  const Problem whole = make_inputs({.vocab = 300, .ids = 300});
  const Problem online = with_teacher(make_inputs({}), 1000);
  for (const Divergence kind : kAll) {
    SCOPED_TRACE(static_cast<int>(kind));
    for (const Problem* in : {&truncated, &whole, &online}) {
      expect_equal(*in, {.kind = kind, .mix = 0.3});
      expect_equal(*in, {.kind = kind, .mix = 0.3, .divergence = 0.7, .cross_entropy = 0.3, .temperature = 1.7});
    }
  }
}

// Such as one whose vocabulary is not padded.
TEST(HeadLoss, GivesTokensThatTheTeacherDoesNotHaveNothing) {
  for (const int64_t known : {700, 999}) {
    Problem in = with_teacher(make_inputs({}), known);
    for (const Divergence kind : kAll) {
      SCOPED_TRACE(fmt::format("{} tokens, divergence {}", known, static_cast<int>(kind)));
      expect_equal(in, {.kind = kind, .mix = 0.3});
      expect_equal(in, {.kind = kind, .mix = 0.3, .divergence = 0.7, .cross_entropy = 0.3, .temperature = 1.7});
      expect_equal(in, {.kind = kind, .teacher_temperature = 2.0, .entropy_power = 1.0});
    }
  }
}

TEST(HeadLoss, TakesTheTeachersDistributionAtATemperatureOfItsOwn) {
  for (const auto& in : {make_inputs({.vocab = 300, .ids = 300}), with_teacher(make_inputs({}), 1000)}) {
    expect_equal(in, {.temperature = 1.5, .teacher_temperature = 0.6});
    expect_equal(in, {.kind = Divergence::kReverseKl, .teacher_temperature = 2.0});
  }
  EXPECT_THROW(expect_equal(make_inputs({}), {.teacher_temperature = 2.0}), c10::Error);
}

TEST(HeadLoss, CapsLogits) {
  for (const auto& in : {make_inputs({}), with_teacher(make_inputs({}), 1000)}) {
    expect_equal(in, {.divergence = 0.7, .cross_entropy = 0.3, .soft_cap = 3.0});
    expect_equal(in, {.kind = Divergence::kJensenShannon, .temperature = 1.5, .soft_cap = 30.0});
  }
}

TEST(HeadLoss, WeighsTargetsByTheTeachersEntropy) {
  for (const auto& in : {make_inputs({}), with_teacher(make_inputs({}), 1000)}) {
    expect_equal(in, {.divergence = 0.7, .cross_entropy = 0.3, .entropy_power = 1.0});
    expect_equal(in, {.kind = Divergence::kReverseKl, .entropy_power = -0.5});
  }
}

TEST(HeadLoss, LeavesIgnoredLabelsOutOfTheCrossEntropyAlone) {
  for (const auto& in : {make_inputs({}), with_teacher(make_inputs({}), 1000)}) {
    in.targets.labels.narrow(0, 3, 5).fill_(kIgnoredLabel);
    expect_equal(in, {.divergence = 0.7, .cross_entropy = 0.3});
  }
}

TEST(HeadLoss, IsWithinOneRoundingOfTheFormulaInBf16AgainstATeacher) {
  Problem in = with_teacher(make_inputs({}), 1000);
  in.hidden = as_bf16(in.hidden);
  in.weight = as_bf16(in.weight);
  in.targets.teacher_hidden = as_bf16(in.targets.teacher_hidden);
  in.targets.teacher_weight = as_bf16(in.targets.teacher_weight);
  for (const Divergence kind : kAll) {
    const HeadLossOptions options{.kind = kind, .divergence = 0.7, .cross_entropy = 0.3};
    const Outcome theirs = run(reference::head_loss, in, options, at::kDouble, at::kDouble);
    const Outcome ours = run(head_loss, in, options, at::kBFloat16, at::kFloat);
    EXPECT_LT(relative_error(ours.loss.loss, theirs.loss.loss), 1e-6);
    EXPECT_LT(norm_error(ours.grad_hidden, theirs.grad_hidden), kBf16Rounding);
    EXPECT_LT(norm_error(ours.grad_weight, theirs.grad_weight), kBf16Rounding);
  }
}

TEST(HeadLoss, EveryDivergenceIsLeastWhereTheStudentHasTheTeachersProbabilities) {
  Problem in = with_teacher(make_inputs({.targets = 40}), 1000, 48);
  in.targets.rows = at::arange(40);
  in.hidden = in.targets.teacher_hidden;
  in.weight = in.targets.teacher_weight;
  for (const Divergence kind : kAll) {
    const Outcome ours = run(head_loss, in, {.kind = kind}, at::kFloat, at::kFloat);
    EXPECT_NEAR(ours.loss.loss.item<double>(), 0, 2e-5) << static_cast<int>(kind);
    if (kind == Divergence::kTotalVariation) continue;  // it has a kink there
    EXPECT_LT(ours.grad_weight.abs().max().item<double>(), 1e-4) << static_cast<int>(kind);
  }
}

TEST(HeadLoss, EqualsTheUnfusedFormulaAcrossManyBlocksOfTheVocabulary) {
  // 2,000 targets leave room for 2,048 columns at a time.
  const Problem in = make_inputs({.tokens = 2000, .targets = 2000, .size = 8, .vocab = 2600, .ids = 5});
  expect_equal(in, {.divergence = 0.7, .cross_entropy = 0.3});
  expect_equal(with_teacher(in, 2600), {.divergence = 0.7, .cross_entropy = 0.3});
  expect_equal(with_teacher(in, 2600), {.kind = Divergence::kJensenShannon, .temperature = 2.0});
}

// The bound on bf16: hidden and weight are the same rounded numbers on both sides, so what is left is one rounding of
// the logits' gradient (2^-9) and one of the result.
TEST(HeadLoss, IsWithinOneRoundingOfTheFormulaInBf16) {
  Problem in = make_inputs({});
  in.hidden = as_bf16(in.hidden);
  in.weight = as_bf16(in.weight);
  const HeadLossOptions options{.divergence = 0.7, .cross_entropy = 0.3};
  const Outcome theirs = run(reference::head_loss, in, options, at::kDouble, at::kDouble);
  for (const auto weight_dtype : {at::kFloat, at::kBFloat16}) {
    const Outcome ours = run(head_loss, in, options, at::kBFloat16, weight_dtype);
    EXPECT_EQ(ours.grad_hidden.scalar_type(), at::kBFloat16);
    EXPECT_EQ(ours.grad_weight.scalar_type(), weight_dtype);
    EXPECT_LT(relative_error(ours.loss.loss, theirs.loss.loss), 1e-6);
    EXPECT_LT(norm_error(ours.grad_hidden, theirs.grad_hidden), kBf16Rounding);
    EXPECT_LT(norm_error(ours.grad_weight, theirs.grad_weight), kBf16Rounding);
  }
}

TEST(HeadLoss, GradientIsTheSlopeOfTheLoss) {
  // Central differences along a random direction, in the fp64 formula's place: independent of autograd.
  const Problem in = make_inputs({.tokens = 6, .targets = 5, .size = 16, .vocab = 90, .ids = 4});
  HeadLossOptions options{.divergence = 0.8, .cross_entropy = 0.2, .temperature = 1.5};
  const at::Tensor direction = random(in.weight.sizes(), 8);
  for (const Problem& problem : {in, with_teacher(in, 90)}) {
    for (const Divergence kind : kAll) {
      options.kind = kind;
      const Outcome ours = run(head_loss, problem, options, at::kFloat, at::kFloat);
      const auto loss_at = [&](double step) {
        return reference::head_loss(problem.hidden, problem.weight + step * direction, problem.targets, options,
                                    1.0 / 7, problem.token_weights)
            .loss.item<double>();
      };
      const double slope = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6;
      EXPECT_NEAR((ours.grad_weight.to(at::kDouble) * direction).sum().item<double>(), slope,
                  1e-5 * std::abs(slope) + 1e-6);
    }
  }
}

TEST(HeadLoss, GhostTailIsLeastWhereTheStudentHasTheTeachersProbabilities) {
  // hidden = 1 and weight = log q make the student's distribution q exactly.
  const at::Tensor q = at::softmax(random({1, 50}, 9), -1);
  const auto [top, ids] = q.topk(5, -1);
  const HeadLossTargets targets{.rows = at::zeros({1}, at::kLong),
                                .labels = at::zeros({1}, at::kLong),
                                .offsets = at::arange(2) * 5,
                                .ids = ids.flatten(),
                                .weights = top.flatten().to(at::kFloat),
                                .uncovered = (1 - top.sum(-1)).to(at::kFloat)};
  const at::Tensor hidden = at::ones({1, 1});
  const at::Tensor weight = q.log().t().to(at::kFloat).requires_grad_();
  const HeadLoss ghost = head_loss(hidden, weight, targets, {});
  ghost.loss.backward();
  EXPECT_NEAR(ghost.loss.item<double>(), 0, 1e-6);
  EXPECT_LT(weight.grad().abs().max().item<double>(), 1e-6);
  // Renormalised targets would pull the same student towards more certainty.
  const at::Tensor other = weight.detach().clone().requires_grad_();
  head_loss(hidden, other, targets, {.tail = TailRule::kRenormalise}).loss.backward();
  EXPECT_LT(other.grad().flatten()[ids.flatten()[0].item<int64_t>()].item<double>(), -0.01);
}

// Bytes of tensors that this thread makes while it lives: at most so many at a time.
class TensorBytes final : public c10::MemoryReportingInfoBase {
 public:
  template <typename Body>
  static int64_t peak_of(Body&& body) {
    const auto bytes = std::make_shared<TensorBytes>();
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, bytes);
    body();
    return bytes->peak_;
  }
  void reportMemoryUsage(void* /*data*/, int64_t size, size_t /*total*/, size_t /*reserved*/,
                         c10::Device /*device*/) override {
    now_ += size;
    peak_ = std::max(peak_, now_);
  }
  bool memoryProfilingEnabled() const override { return true; }

 private:
  int64_t now_ = 0, peak_ = 0;
};

TEST(HeadLoss, NeedsOneBlockOfLogitsBeyondItsResults) {
  constexpr int64_t kVocab = 50'000, kTargets = 512, kSize = 64, kIds = 64;
  constexpr int64_t kLogits = kTargets * kVocab * 4;
  static_assert(kLogits > 4 * kHeadLossWorkspaceBytes);
  Problem stored;
  stored.hidden = random({kTargets, kSize}, 1);
  stored.weight = random({kVocab, kSize}, 2) * 0.3;
  stored.targets = {.rows = at::arange(kTargets),
                    .labels = at::arange(kTargets),
                    .offsets = at::arange(kTargets + 1) * kIds,
                    .ids = (at::arange(kIds) * 700).repeat(kTargets),
                    .weights = at::full({kTargets * kIds}, 0.8 / kIds, at::kFloat),
                    .uncovered = at::full({kTargets}, 0.2, at::kFloat)};
  const auto expect_small = [&](const Problem& in, at::ScalarType dtype, Divergence kind) {
    const at::Tensor hidden = in.hidden.to(dtype).requires_grad_();
    const at::Tensor weight = in.weight.to(at::kFloat).requires_grad_();
    const HeadLossTargets targets = in_dtype(in.targets, dtype);
    const auto results = static_cast<int64_t>(hidden.nbytes() + weight.nbytes());
    const int64_t copy = dtype == at::kFloat ? 0 : 2 * weight.numel();
    // What grows with the targets alone: their hidden states, the gradient of these, measures.
    constexpr int64_t kSmall = 8 * kTargets * kSize * 4;
    const int64_t peak = TensorBytes::peak_of([&] { head_loss(hidden, weight, targets, {.kind = kind}); });
    EXPECT_LT(peak, kHeadLossWorkspaceBytes + results + copy + kSmall) << static_cast<int>(kind) << ' ' << dtype;
    EXPECT_GT(peak, results);
  };
  const Problem online = with_teacher(stored, kVocab, kSize);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    expect_small(stored, dtype, Divergence::kForwardKl);
    expect_small(online, dtype, Divergence::kJensenShannon);
  }
  EXPECT_GE(TensorBytes::peak_of([&] { at::empty({kTargets, kVocab}, at::kFloat); }), kLogits);  // that it counts
}

TEST(HeadLoss, AddsUpOverAccumulatedBatchesAndTiedEmbeddings) {
  const Problem in = make_inputs({});
  const auto total_gradient = [&](at::ScalarType dtype, const auto& function) {
    const at::Tensor weight = in.weight.to(dtype).clone().requires_grad_();
    for (int step = 0; step < 2; ++step) {
      // The hidden state comes from the same matrix, as with tied embeddings.
      const at::Tensor hidden = at::embedding(weight, at::arange(40) + 40 * step) * 1.5;
      function(hidden, weight, in.targets, HeadLossOptions{}, 0.5, in.token_weights).loss.backward();
    }
    return weight.grad();
  };
  EXPECT_LT(norm_error(total_gradient(at::kFloat, head_loss), total_gradient(at::kDouble, reference::head_loss)), 1e-6);
}

TEST(HeadLoss, ScalesWithTheGradientFromAbove) {
  const Problem in = make_inputs({});
  const at::Tensor weight = in.weight.to(at::kFloat).requires_grad_();
  const at::Tensor hidden = in.hidden.to(at::kFloat);
  head_loss(hidden, weight, in.targets, {}).loss.backward();
  const at::Tensor once = weight.grad().clone();
  weight.mutable_grad() = at::Tensor();
  (head_loss(hidden, weight, in.targets, {}).loss * 3).backward();
  EXPECT_LT(norm_error(weight.grad(), 3 * once), 1e-6);
}

TEST(HeadLoss, AcceptsABatchWithoutTargets) {
  const Problem in = make_inputs({});
  const at::Tensor none = at::empty({0}, at::kLong);
  const at::Tensor none_fp32 = at::empty({0}, at::kFloat);
  const at::Tensor weight = in.weight.to(at::kFloat).requires_grad_();
  const HeadLoss loss = head_loss(in.hidden.to(at::kFloat), weight,
                                  {none, none, at::zeros({1}, at::kLong), none, none_fp32, none_fp32}, {});
  loss.loss.backward();
  EXPECT_EQ(loss.loss.item<float>(), 0);
  EXPECT_EQ(weight.grad().abs().max().item<float>(), 0);
}

TEST(HeadLoss, ShowsNanWeightsInTheLoss) {
  Problem in = make_inputs({});
  in.weight[3][2] = NAN;
  EXPECT_FALSE(
      std::isfinite(head_loss(in.hidden.to(at::kFloat), in.weight.to(at::kFloat), in.targets, {}).loss.item<double>()));
}

TEST(HeadLoss, RefusesTargetsOutsideTheVocabulary) {
  Problem in = make_inputs({});
  in.targets.ids[3] = 1000;
  EXPECT_THAT([&] { head_loss(in.hidden.to(at::kFloat), in.weight.to(at::kFloat), in.targets, {}); },
              testing::Throws<c10::Error>(testing::Property(&c10::Error::what_without_backtrace,
                                                            testing::HasSubstr("1000 do not lie in [0, 1000)"))));
}

TEST(HeadLoss, RefusesARepeatedId) {
  Problem in = make_inputs({});
  in.targets.ids[3] = in.targets.ids[4];
  EXPECT_THROW(head_loss(in.hidden.to(at::kFloat), in.weight.to(at::kFloat), in.targets, {}), c10::Error);
}

}  // namespace
}  // namespace distill::kernels
