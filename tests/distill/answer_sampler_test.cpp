#include "distill/answer_sampler.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/text_file.h"
#include "distill/trainer.h"
#include "student/dense_model.h"
#include "tests/data/expect_error.h"
#include "tests/distill/tiny_model_folder.h"
#include "tests/distill/tiny_traces.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

using testing::HasSubstr;

class AnswerSamplerTest : public testing::Test {
 protected:
  void SetUp() override {
    at::set_num_threads(1);
    TinyModel writer(kTinyVocab, 16, 100);
    traces_ = make_tiny_traces(folder_.path() / "traces", writer, "topk:4", 30);
  }
  static std::unique_ptr<nn::CausalLM> model(uint64_t seed, bool trainable = false) {
    return student::make_dense_model(tiny_config(kTinyVocab), {.compute = at::kFloat, .trainable = trainable}, seed);
  }
  AnswerSampler sampler(const OnPolicyOptions& options, int64_t max_tokens = 64) {
    return {traces_, options, /*stop_tokens=*/{3}, max_tokens, /*seed=*/5};
  }

  TemporaryFolder folder_{TemporaryFolder::memory()};
  std::shared_ptr<const data::TraceReader> traces_;
};

TEST_F(AnswerSamplerTest, WritesNewAnswersToTheSamePrompts) {
  const auto batch = data::Batcher(traces_, {.max_tokens = 64}).next();
  const auto student = model(1);
  const AnswerSampler answers = sampler({.student_share = 1, .max_new_tokens = 7});
  const auto own = answers.rewrite(batch, *student, /*own=*/true, 4, 0).at(0);
  ASSERT_EQ(own.documents, batch.documents);
  const auto* const offset = own.sequence_offsets.const_data_ptr<int32_t>();
  int64_t targets = 0;
  for (size_t d = 0; d < own.documents.size(); ++d) {
    const auto document = traces_->read_document(own.documents[d]);
    for (int32_t i = 0; i < document.prompt_length; ++i) {
      EXPECT_EQ(own.tokens[offset[d] + i].item<int64_t>(), document.tokens[static_cast<size_t>(i)]);
    }
    const int64_t answer = offset[d + 1] - offset[d] + 1 - document.prompt_length;
    EXPECT_GE(answer, 1);
    EXPECT_LE(answer, 7);
    EXPECT_EQ(own.target_rows[targets].item<int64_t>(), offset[d] + document.prompt_length - 1);
    targets += answer;
  }
  EXPECT_EQ(own.target_rows.numel(), targets);
  EXPECT_TRUE((own.labels == kernels::kIgnoredLabel).all().item<bool>());

  EXPECT_TRUE(answers.rewrite(batch, *student, true, 4, 0).at(0).tokens.equal(own.tokens));
  EXPECT_FALSE(answers.rewrite(batch, *student, true, 5, 0).at(0).tokens.equal(own.tokens));

  // A teacher's words may be learned as such.
  const auto theirs = answers.rewrite(batch, *student, /*own=*/false, 4, 0).at(0);
  EXPECT_TRUE(theirs.labels.index_select(0, theirs.target_rows).ge(0).all().item<bool>());
}

TEST_F(AnswerSamplerTest, PacksLongerAnswersIntoMoreBatches) {
  const auto batch = data::Batcher(traces_, {.max_tokens = 64}).next();
  ASSERT_EQ(batch.documents.size(), 4);
  const auto student = model(1);
  const OnPolicyOptions options{.student_share = 1, .max_new_tokens = 40};
  const auto whole = sampler(options, 1000).rewrite(batch, *student, false, 4, 0);
  ASSERT_EQ(whole.size(), 1);
  ASSERT_GT(whole[0].tokens.numel(), 64);
  struct Rows {
    int64_t begin, end;
  };
  const auto rows_of = [](const data::TrainingBatch& from, size_t document) {
    const auto at = static_cast<size_t>(std::ranges::find(from.documents, document) - from.documents.begin());
    const auto* const offset = from.sequence_offsets.const_data_ptr<int32_t>();
    return Rows{offset[at], offset[at + 1]};
  };
  for (const int64_t room : {64, 20}) {
    const auto batches = sampler(options, room).rewrite(batch, *student, false, 4, 0);
    EXPECT_GT(batches.size(), 1);
    std::vector<size_t> documents;
    for (const auto& part : batches) {
      EXPECT_LE(part.tokens.numel(), room);
      EXPECT_EQ(part.verdicts.size(), part.documents.size());
      EXPECT_EQ(part.reasoning_targets.size(), part.documents.size());
      for (const size_t document : part.documents) {
        documents.push_back(document);
        // The same answer, cut to the room there is.
        const Rows rows = rows_of(part, document), uncut = rows_of(whole[0], document);
        const int64_t count = rows.end - rows.begin;
        EXPECT_EQ(count, std::min(room, uncut.end - uncut.begin));
        const auto equal = [&](const at::Tensor& a, const at::Tensor& b) {
          return a.narrow(0, rows.begin, count).equal(b.narrow(0, uncut.begin, count));
        };
        EXPECT_TRUE(equal(part.tokens, whole[0].tokens));
        EXPECT_TRUE(equal(part.positions, whole[0].positions));
        EXPECT_TRUE(equal(part.labels, whole[0].labels));
        const at::Tensor targets = part.target_rows.ge(rows.begin).logical_and(part.target_rows.lt(rows.end));
        EXPECT_EQ(targets.sum().item<int64_t>(), count - (traces_->read_document(document).prompt_length - 1));
      }
    }
    EXPECT_THAT(documents, testing::UnorderedElementsAreArray(batch.documents));
  }
}

TEST_F(AnswerSamplerTest, DrawsWhoWritesByTheShares) {
  const AnswerSampler answers = sampler({.student_share = 0.5, .teacher_share = 0.25});
  std::map<AnswerSource, int> counts;
  for (int step = 0; step < 1000; ++step) ++counts[answers.source(step, step % 3)];
  EXPECT_NEAR(counts[AnswerSource::kStudent], 500, 60);
  EXPECT_NEAR(counts[AnswerSource::kTeacher], 250, 50);
  EXPECT_NEAR(counts[AnswerSource::kTraces], 250, 50);
}

TEST_F(AnswerSamplerTest, CountsTheTokensThatAreTrainedOn) {
  Recipe recipe;
  recipe.schedule.steps = 2;
  recipe.batch_tokens = 128;
  recipe.micro_batch_tokens = 64;
  recipe.compute = at::kFloat;
  const auto run = [&](const std::string& out, double student_share) {
    recipe.on_policy = {.student_share = student_share, .max_new_tokens = 1};
    const auto student = model(1, /*trainable=*/true);
    const auto summary = train({.student = *student,
                                .package = {.config = tiny_config(kTinyVocab), .files = {}},
                                .traces = traces_,
                                .run = folder_.path() / out,
                                .recipe = recipe,
                                .teachers = {{.model = model(9)}}});
    const auto state = core::read_json_file(summary.checkpoint / "trainer.json");
    EXPECT_EQ(state["tokens"], summary.tokens);
    return std::pair(summary.tokens, state["targets"].get<uint64_t>());
  };
  // A document of the traces has 3 tokens of prompt and 12 of answer.
  const auto [tokens, targets] = run("traces", 0);
  EXPECT_EQ(tokens % 14, 0);
  EXPECT_EQ(targets, tokens / 14 * 12);
  EXPECT_EQ(run("answers", 1), std::pair(tokens / 14 * 3, tokens / 14));
}

TEST_F(AnswerSamplerTest, TrainsOnItsOwnAnswersTowardsTheTeacherAndContinuesToTheSameWeights) {
  const std::shared_ptr<nn::CausalLM> teacher = model(9);
  Recipe recipe;
  recipe.objective.divergence = kernels::Divergence::kReverseKl;
  recipe.on_policy = {.student_share = 0.5, .teacher_share = 0.2, .max_new_tokens = 6};
  recipe.schedule = {.peak = 0.02, .warmup_steps = 1, .steps = 12};
  recipe.batch_tokens = 128;
  recipe.micro_batch_tokens = 64;
  recipe.compute = at::kFloat;
  const auto run = [&](const std::filesystem::path& out, int64_t steps) {
    const auto student = model(1, /*trainable=*/true);
    recipe.schedule.shape = ScheduleShape::kConstant;
    recipe.schedule.steps = steps;
    const auto summary = train({.student = *student,
                                .package = {.config = tiny_config(kTinyVocab), .files = {}},
                                .traces = traces_,
                                .run = out,
                                .recipe = recipe,
                                .teachers = {{.model = teacher}},
                                .stop_tokens = {3}});
    return core::read_file(summary.checkpoint / "model.safetensors");
  };
  run(folder_.path() / "run", 5);
  EXPECT_EQ(run(folder_.path() / "run", 12), run(folder_.path() / "straight", 12));

  recipe.objective.divergence = kernels::Divergence::kForwardKl;
  const auto student = model(1, true);
  EXPECT_THAT(error_of([&] {
                train({.student = *student,
                       .package = {},
                       .traces = traces_,
                       .run = folder_.path() / "no-teacher",
                       .recipe = recipe});
              }),
              HasSubstr("use --online"));
}

}  // namespace
}  // namespace distill
