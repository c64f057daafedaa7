#include "distill/hidden_loss.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/text_file.h"
#include "data/safetensors.h"
#include "distill/trainer.h"
#include "tests/data/expect_error.h"
#include "tests/distill/tiny_traces.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

using testing::HasSubstr;

at::Tensor normal(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kFloat);
}

// The header's formulas in fp64.
at::Tensor formula(HiddenDistance distance, const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& w) {
  const at::Tensor seen = at::matmul(student, w.t());
  if (distance == HiddenDistance::kMse) return (seen - teacher).pow(2).sum(-1) / teacher.size(1);
  return 1 - (seen * teacher).sum(-1) / (seen.pow(2).sum(-1).sqrt() * teacher.pow(2).sum(-1).sqrt());
}

TEST(HiddenLoss, EqualsItsFormulaInFp64AndSoDoesItsGradient) {
  for (const auto distance : {HiddenDistance::kMse, HiddenDistance::kCosine}) {
    const HiddenLoss loss(distance, 6, 9, 3);
    const at::Tensor student = normal({5, 6}, 1).requires_grad_();
    const at::Tensor teacher = normal({5, 9}, 2);
    const at::Tensor weights = normal({5}, 4).abs();
    (loss(student, teacher) * weights).sum().backward();

    const at::Tensor student64 = student.detach().to(at::kDouble).requires_grad_();
    const at::Tensor w64 = loss.projector().detach().to(at::kDouble).requires_grad_();
    const at::Tensor expected = formula(distance, student64, teacher.to(at::kDouble), w64);
    (expected * weights.to(at::kDouble)).sum().backward();
    EXPECT_TRUE(at::allclose(loss(student, teacher).to(at::kDouble), expected, 1e-5, 1e-6));
    EXPECT_TRUE(at::allclose(student.grad().to(at::kDouble), student64.grad(), 1e-4, 1e-6));
    EXPECT_TRUE(at::allclose(loss.projector().grad().to(at::kDouble), w64.grad(), 1e-4, 1e-6));

    // The formula's own gradient is the slope of its value.
    const c10::NoGradGuard no_grad;
    const at::Tensor step = normal({9, 6}, 5).to(at::kDouble) * 1e-6;
    const auto value = [&](const at::Tensor& w) {
      return (formula(distance, student64, teacher.to(at::kDouble), w) * weights.to(at::kDouble)).sum().item<double>();
    };
    const double slope = (value(w64 + step) - value(w64 - step)) / 2;
    EXPECT_NEAR(slope, (w64.grad() * step).sum().item<double>(), 1e-6 * std::abs(slope) + 1e-12);
  }
}

TEST(HiddenLoss, NamesItsDistances) {
  EXPECT_EQ(to_string(parse_hidden_distance("cosine")), "cosine");
  EXPECT_THAT(error_of([] { parse_hidden_distance("l1"); }), HasSubstr("'l1' is neither mse nor cosine"));
}

class HiddenStates : public testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(1); }
  std::shared_ptr<nn::CausalLM> teacher() { return {std::shared_ptr<void>(), &teacher_}; }

  TemporaryFolder folder_{TemporaryFolder::memory()};
  TinyModel teacher_{kTinyVocab, 24, 100};
};

TEST_F(HiddenStates, AddTheirWeightedDistanceToTheLoss) {
  const auto traces = make_tiny_traces(folder_.path() / "traces", teacher_, "topk:4", 6);
  const auto batch = data::Batcher(traces, {.max_tokens = 512}).next();
  TinyModel student(kTinyVocab, 16, 1);
  ObjectiveOptions options{.weights = {.unchecked = 0.5}};
  const BatchLoss without = Objective(options, {{.model = teacher()}})(student, batch, 0.25);
  options.hidden_states = {.distance = HiddenDistance::kCosine, .weight = 3};
  const Objective objective(options, {{.model = teacher()}}, student.shape(), 7);
  const BatchLoss with = objective(student, batch, 0.25);
  ASSERT_EQ(objective.parameters().size(), 1);
  EXPECT_EQ(objective.parameters()[0].first, "projector.0");

  const nn::PackedBatch packed{
      .tokens = batch.tokens, .positions = batch.positions, .sequence_offsets = batch.sequence_offsets};
  const at::Tensor distances =
      formula(HiddenDistance::kCosine, student.forward(packed).index_select(0, batch.target_rows).to(at::kDouble),
              teacher_.forward(packed).index_select(0, batch.target_rows).to(at::kDouble),
              objective.parameters()[0].second.to(at::kDouble));
  const double sum = distances.sum().item<double>();
  const auto* const offset = batch.sequence_offsets.const_data_ptr<int32_t>();
  const auto* const row = batch.target_rows.const_data_ptr<int64_t>();
  double weighted = 0;  // traces without a verifier count half
  for (int64_t i = 0, d = 0; i < distances.numel(); ++i) {
    while (row[i] >= offset[d + 1]) ++d;
    const bool unchecked = batch.verdicts[static_cast<size_t>(d)] == data::Verdict::kUnchecked;
    weighted += distances[i].item<double>() * (unchecked ? 0.5 : 1);
  }
  EXPECT_NEAR(with.sums.hidden_states, sum, 1e-5 * sum);
  EXPECT_NEAR(with.sums.loss - without.sums.loss, 3 * weighted, 1e-4 * weighted);
  EXPECT_NEAR((with.loss - without.loss).item<double>(), 0.25 * 3 * weighted, 1e-4 * weighted);
}

TEST_F(HiddenStates, AreLearnedThroughAProjectorThatIsSavedBesideTheModel) {
  const auto traces = make_tiny_traces(folder_.path() / "traces", teacher_, "topk:4", 30);
  Recipe recipe;
  recipe.objective.hidden_states.weight = 1;
  recipe.schedule = {.shape = ScheduleShape::kConstant, .peak = 0.02, .warmup_steps = 1, .steps = 30};
  recipe.optimizer.average = 0.5;
  recipe.batch_tokens = 128;
  recipe.micro_batch_tokens = 64;
  recipe.compute = at::kFloat;
  const auto run = [&](const std::string& out, int64_t steps) {
    TinyModel student(kTinyVocab, 16, 1);
    recipe.schedule.steps = steps;
    return train({.student = student,
                  .package = {.config = {{"vocab_size", kTinyVocab}}, .files = {}},
                  .traces = traces,
                  .run = folder_.path() / out,
                  .recipe = recipe,
                  .teachers = {{.model = teacher()}}});
  };
  const auto straight = run("straight", 30);
  const auto model = data::open_safetensors(straight.checkpoint);
  EXPECT_EQ(model->find("projector.0"), nullptr);
  const auto rest = data::open_safetensors(straight.checkpoint / "optimizer.safetensors");
  EXPECT_THAT(rest->load("auxiliary.projector.0").sizes(), testing::ElementsAre(24, 16));

  run("parts", 11);
  const auto parts = run("parts", 30);
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    EXPECT_EQ(core::read_file(parts.checkpoint / file), core::read_file(straight.checkpoint / file)) << file;
  }

  std::vector<double> distances;
  core::for_each_json_line(folder_.path() / "straight/metrics.jsonl", [&](size_t, nlohmann::json&& line) {
    if (line["kind"] == "train") distances.push_back(line["hidden_states"].get<double>());
  });
  ASSERT_EQ(distances.size(), 30);
  EXPECT_LT(distances.back(), 0.6 * distances.front());
}

}  // namespace
}  // namespace distill
