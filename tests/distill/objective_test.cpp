#include "distill/objective.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/batcher.h"
#include "distill/target_support.h"
#include "tests/data/expect_error.h"
#include "tests/distill/tiny_traces.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

using kernels::Divergence;
using testing::AllOf;
using testing::HasSubstr;

class ObjectiveTest : public testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(1); }

  data::TrainingBatch batch(const std::string& targets = "full") {
    const auto traces = make_tiny_traces(folder_.path() / targets, teacher_, targets, 8);
    data::TrainingBatch batch = data::Batcher(traces, {.max_tokens = 512}).next();
    spec_ = traces->provenance().targets;
    return batch;
  }
  BatchLoss loss(const ObjectiveOptions& options, const data::TrainingBatch& batch) {
    return Objective(options, spec_)(student_, batch, 1.0);
  }
  // Another owner of the teacher, which the test keeps.
  std::shared_ptr<nn::CausalLM> teacher() { return {std::shared_ptr<void>(), &teacher_}; }
  at::Tensor gradient(const BatchLoss& loss) {
    const at::Tensor embedding = student_.parameters().front().second;
    embedding.mutable_grad() = at::Tensor();
    loss.loss.backward();
    return embedding.grad().clone();
  }

  TemporaryFolder folder_{TemporaryFolder::memory()};
  TinyModel teacher_{kTinyVocab, 16, 100};
  TinyModel student_{kTinyVocab, 16, 1};
  data::TargetSpec spec_;
};

TEST_F(ObjectiveTest, ATeacherThatIsHereGivesWhatItsFullDistributionsGive) {
  const auto data = batch("full");
  for (const auto kind : {Divergence::kForwardKl, Divergence::kReverseKl, Divergence::kJensenShannon,
                          Divergence::kTotalVariation, Divergence::kSkewForwardKl, Divergence::kSkewReverseKl}) {
    const ObjectiveOptions options{.divergence = kind, .hard_label_weight = 0.2, .temperature = 1.3};
    const BatchLoss stored = loss(options, data);
    const BatchLoss online = Objective(options, {{.model = teacher()}})(student_, data, 1.0);
    // The stored ones are rounded to fp16, which may decide which of two tokens is first, or on which side of the
    // kink of the total variation the student is.
    EXPECT_NEAR(online.loss.item<double>() / stored.loss.item<double>(), 1, 2e-3) << to_string(kind);
    EXPECT_EQ(online.sums.targets, stored.sums.targets);
    EXPECT_NEAR(online.sums.agreements, stored.sums.agreements, 2);
    EXPECT_DOUBLE_EQ(online.sums.cross_entropy, stored.sums.cross_entropy);
    const at::Tensor expected = gradient(stored);
    EXPECT_LT((gradient(online) - expected).norm().item<double>(), 0.05 * expected.norm().item<double>());
  }
}

TEST_F(ObjectiveTest, SeveralTeachersAddUpByTheirWeights) {
  const auto data = batch("full");
  TinyModel other(kTinyVocab, 16, 200);
  const std::shared_ptr<nn::CausalLM> second(std::shared_ptr<void>(), &other);
  const ObjectiveOptions options{.divergence = Divergence::kReverseKl};
  const auto alone = [&](const auto& model) { return Objective(options, {{.model = model}})(student_, data, 1.0); };
  const BatchLoss a = alone(teacher());
  const BatchLoss b = alone(second);
  const BatchLoss both = Objective(options, {{.model = teacher(), .weight = 0.75}, {.model = second, .weight = 0.25}})(
      student_, data, 1.0);
  EXPECT_NEAR(both.sums.loss, 0.75 * a.sums.loss + 0.25 * b.sums.loss, 1e-6 * a.sums.loss);
  EXPECT_NEAR(both.sums.divergence, 0.75 * a.sums.divergence + 0.25 * b.sums.divergence, 1e-6 * a.sums.divergence);
  EXPECT_TRUE(at::allclose(gradient(both), 0.75 * gradient(a) + 0.25 * gradient(b), 1e-4, 1e-6));
}

// As if it were stored: the distribution gives the other tokens nothing.
TEST_F(ObjectiveTest, ATeacherOfFewerTokensGivesTheOthersNothing) {
  TinyModel larger(kTinyVocab + 7, 16, 1);
  const auto data = batch("full");
  const at::Tensor embedding = larger.parameters().front().second;
  for (const auto kind : {Divergence::kForwardKl, Divergence::kReverseKl, Divergence::kJensenShannon}) {
    const ObjectiveOptions options{.divergence = kind, .hard_label_weight = 0.2};
    embedding.mutable_grad() = at::Tensor();
    const BatchLoss online = Objective(options, {{.model = teacher()}})(larger, data, 1.0);
    online.loss.backward();
    // Descending lowers what the student gives to the tokens that the teacher does not have.
    const at::Tensor hidden = larger.forward(
        nn::PackedBatch{.tokens = data.tokens, .positions = data.positions, .sequence_offsets = data.sequence_offsets});
    const auto given = [&](const at::Tensor& weight) {
      const at::Tensor p = at::softmax(at::matmul(hidden, weight.t()), -1).index_select(0, data.target_rows);
      return p.narrow(1, kTinyVocab, 7).sum().item<double>();
    };
    EXPECT_LT(given(embedding - 1e-3 * embedding.grad()), given(embedding)) << to_string(kind);
    EXPECT_GT(online.sums.divergence, 0);
    // Cross-entropy and confidence are over all of the student's tokens.
    const BatchLoss hard = Objective({.hard_label_weight = 1}, spec_)(larger, data, 1.0);
    EXPECT_NEAR(online.sums.cross_entropy, hard.sums.cross_entropy, 1e-5 * hard.sums.cross_entropy);
    EXPECT_NEAR(online.sums.calibration.error(), hard.sums.calibration.error(), 1e-5);
  }
}

TEST_F(ObjectiveTest, WeighsReasoningAnswersAndVerdicts) {
  auto data = batch("topk:5");
  const auto documents = data.documents.size();
  std::fill(data.verdicts.begin(), data.verdicts.end(), data::Verdict::kCorrect);
  const double all = loss({}, data).sums.loss;

  // Incorrect traces out: what is left are the other documents' targets.
  data.verdicts[0] = data::Verdict::kIncorrect;
  const double without_first = loss({.weights = {.incorrect = 0}}, data).sums.loss;
  EXPECT_LT(without_first, all);
  data.verdicts.assign(documents, data::Verdict::kIncorrect);
  data.verdicts[0] = data::Verdict::kCorrect;
  const double first_alone = loss({.weights = {.incorrect = 0}}, data).sums.loss;
  EXPECT_NEAR(without_first + first_alone, all, 1e-5 * all);

  data.verdicts.assign(documents, data::Verdict::kUnchecked);
  EXPECT_NEAR(loss({.weights = {.unchecked = 0.5}}, data).sums.loss, 0.5 * all, 1e-5 * all);

  data.reasoning_targets.assign(documents, 5);
  const double reasoning = loss({.weights = {.answer = 0}}, data).sums.loss;
  const double answers = loss({.weights = {.reasoning = 0}}, data).sums.loss;
  EXPECT_GT(reasoning, 0);
  EXPECT_NEAR(reasoning + answers, all, 1e-5 * all);
  EXPECT_NEAR(loss({.weights = {.reasoning = 2}}, data).sums.loss, all + reasoning, 1e-5 * all);
}

TEST_F(ObjectiveTest, MeasuresTheKlWhateverItTrainsOn) {
  const auto data = batch("full");
  const BatchLoss forward = loss({}, data);
  const BatchLoss total_variation = loss({.divergence = Divergence::kTotalVariation}, data);
  EXPECT_NEAR(total_variation.sums.divergence, forward.sums.divergence, 1e-6 * forward.sums.divergence);
  EXPECT_LE(total_variation.sums.loss, static_cast<double>(forward.sums.targets));  // at most 1 each
  EXPECT_NEAR(forward.sums.loss, forward.sums.divergence, 1e-9);
}

TEST_F(ObjectiveTest, CalibrationCountsEachTargetOnce) {
  const auto data = batch("topk:5");
  const BatchLoss one = loss({}, data);
  double count = 0;
  for (const double bin : one.sums.calibration.count) count += bin;
  EXPECT_EQ(count, static_cast<double>(one.sums.targets));
  const LossSums copy = LossSums::from_tensor(one.sums.to_tensor());
  EXPECT_EQ(copy.calibration.error(), one.sums.calibration.error());
  EXPECT_EQ(copy.agreements, one.sums.agreements);

  Calibration sure;
  sure.count[14] = 10;
  sure.confidence[14] = 9.5;
  sure.hits[14] = 7;
  EXPECT_NEAR(sure.error(), 0.25, 1e-12);
}

// What an objective asks of stored targets, and how a refusal names that.
struct Wish {
  std::string name;
  Divergence kind = Divergence::kForwardKl;
  double teacher_temperature = 1, entropy_power = 0;

  ObjectiveOptions options() const {
    ObjectiveOptions options{.divergence = kind, .temperature = 1.5};
    if (teacher_temperature != 1) options.teacher_temperature = teacher_temperature;
    options.weights.entropy_power = entropy_power;
    return options;
  }
};

// The table in docs/objectives.md: each way of storing targets with each thing that an objective may want of them.
TEST(TargetSupport, AllowsAndRefusesWhatTheTableSays) {
  std::vector<Wish> divergences;
  for (const auto kind : {Divergence::kReverseKl, Divergence::kJensenShannon, Divergence::kTotalVariation,
                          Divergence::kSkewForwardKl, Divergence::kSkewReverseKl}) {
    divergences.push_back({.name = std::string(to_string(kind)), .kind = kind});
  }
  const std::vector<Wish> temperature{{.name = "teacher_temperature", .teacher_temperature = 2},
                                      {.name = "teacher_temperature", .teacher_temperature = 0.5}};
  const std::vector<Wish> entropy{{.name = "weights.entropy_power", .entropy_power = 0.5},
                                  {.name = "weights.entropy_power", .entropy_power = -1}};
  struct Row {
    std::string targets;
    bool carried_over;
    // Reasons, empty where it is sound.
    std::string other_divergences, temperature, entropy;
  };
  const std::string online = "distill train --online";
  const std::vector<Row> table{
      {"full", false, "", "", ""},
      {"topk:64", false, "which of the other tokens the teacher would never write", "known at one temperature only",
       ""},
      {"sampled:8", false, "not linear", "no estimate of the power", "goes with its errors"},
      {"hybrid:4+4", false, "not linear", "no estimate of the power", "goes with its errors"},
      {"threshold:4", false, "not linear", "no estimate of the power", "goes with its errors"},
      {"full", true, "for the written text alone", "at temperature 1 only", "whatever the teacher's entropy"},
      {"topk:64", true, "for the written text alone", "at temperature 1 only", "whatever the teacher's entropy"}};
  for (const Row& row : table) {
    const auto spec = data::TargetSpec::parse(row.targets);
    const auto expect = [&](const std::vector<Wish>& wishes, const std::string& reason, const std::string& instead) {
      for (const Wish& wish : wishes) {
        SCOPED_TRACE(row.targets + (row.carried_over ? " of another tokenizer, " : ", ") + wish.name);
        const std::string error = error_of([&] { Objective(wish.options(), spec, row.carried_over); });
        if (reason.empty()) {
          EXPECT_EQ(error, "");
          continue;
        }
        EXPECT_THAT(error,
                    AllOf(HasSubstr(wish.name + " is unsound on targets " + row.targets), HasSubstr(reason),
                          HasSubstr("Instead: "), HasSubstr(row.carried_over ? "divergence: forward_kl" : instead),
                          HasSubstr(row.carried_over ? "the teacher's tokenizer" : "--targets"),
                          HasSubstr(row.carried_over ? "temperatures of 1" : online)));
      }
    };
    expect({{.name = "forward_kl"}}, "", "");
    expect(divergences, row.other_divergences, "train with divergence: forward_kl");
    expect(temperature, row.temperature, "leave out teacher_temperature");
    expect(entropy, row.entropy, "leave out entropy_power");
    // Cross-entropy alone does not look at the distributions.
    for (const Wish& wish : divergences) {
      ObjectiveOptions options = wish.options();
      options.hard_label_weight = 1;
      EXPECT_NO_THROW(Objective(options, spec, row.carried_over)) << row.targets << ' ' << wish.name;
    }
  }
}

TEST(TargetSupport, ReadsTheNamesOfDivergences) {
  EXPECT_EQ(parse_divergence("jensen_shannon"), Divergence::kJensenShannon);
  EXPECT_EQ(to_string(Divergence::kSkewReverseKl), "skew_reverse_kl");
  EXPECT_THAT(error_of([] { parse_divergence("kl"); }), HasSubstr("'kl' is none of forward_kl, reverse_kl"));
}

}  // namespace
}  // namespace distill
