#include "distill/training_report.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "core/html_report.h"
#include "core/text_file.h"
#include "data/trace_reader.h"
#include "tests/distill/tiny_model_folder.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

class TrainingReportTest : public testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(1); }

  TrainingJob job() const {
    Recipe recipe;
    recipe.schedule.steps = 2;
    recipe.batch_tokens = 64;
    recipe.micro_batch_tokens = 64;
    recipe.validation_share = 0.5;
    recipe.compute = at::kFloat;
    return {.student = *student_,
            .package = {.config = config_, .files = {}},
            .traces = traces_,
            .run = folder_.path() / "run",
            .recipe = recipe,
            .tokenizer = tokenizer_,
            .stop_tokens = {kStop}};
  }

  // The most probable tokens one after the other, until the end token or that of the model's positions.
  std::vector<int32_t> greedy_answer(std::span<const int32_t> prompt) {
    const c10::NoGradGuard no_grad;
    std::vector<int32_t> tokens(prompt.begin(), prompt.end());
    const auto limit = static_cast<size_t>(student_->shape().max_positions);
    while (tokens.size() < limit && (tokens.size() == prompt.size() || tokens.back() != kStop)) {
      const at::Tensor hidden = student_->forward(nn::PackedBatch::from_sequences({tokens}));
      tokens.push_back(student_->logits(hidden)[-1].argmax().item<int32_t>());
    }
    return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt.size()), tokens.end()};
  }

  static constexpr int32_t kStop = 3;
  TemporaryFolder folder_{TemporaryFolder::memory()};
  std::shared_ptr<const data::Tokenizer> tokenizer_ = data::Tokenizer::from_json_file(tokenizer_json());
  nlohmann::json config_ = tiny_config(tokenizer_->vocab_size());
  std::unique_ptr<nn::CausalLM> student_ =
      student::make_dense_model(config_, {.compute = at::kFloat, .trainable = true}, 1);
  std::shared_ptr<const data::TraceReader> traces_ = std::make_shared<const data::TraceReader>(
      data::TraceReader::open(write_traces_of(folder_.path() / "traces", "teacher", 20)));
};

TEST_F(TrainingReportTest, AsksTheStudentWhatTheTracesWereAsked) {
  const auto samples = sample_answers(job(), {4, 1, 7});
  ASSERT_EQ(samples.size(), 3U);
  for (size_t i = 0; i < 3; ++i) {
    const auto document = traces_->read_document(std::vector<size_t>{4, 1, 7}[i]);
    EXPECT_EQ(samples[i].prompt, tokenizer_->decode(document.prompt()));
    EXPECT_EQ(samples[i].traces, tokenizer_->decode(document.completion()));
    EXPECT_EQ(samples[i].student, tokenizer_->decode(greedy_answer(document.prompt())));
  }
}

TEST_F(TrainingReportTest, ShowsAnswersToHeldOutPrompts) {
  const std::string html = core::read_file(train(job()).report);
  const size_t heading = html.find("Answers to held-out prompts");
  ASSERT_NE(heading, std::string::npos);
  // The weights are those of the end of the run, the documents the first ones held out.
  data::Batcher held_out(traces_, {.max_tokens = 64, .validation_share = 0.5, .validation = true});
  const auto documents = held_out.next().documents;
  ASSERT_FALSE(documents.empty());
  size_t at = heading;
  for (size_t i = 0; i < std::min<size_t>(4, documents.size()); ++i) {
    const auto document = traces_->read_document(documents[i]);
    for (const std::string& text : {tokenizer_->decode(document.prompt()), tokenizer_->decode(document.completion()),
                                    tokenizer_->decode(greedy_answer(document.prompt()))}) {
      at = html.find(core::escape_html(text), at);
      ASSERT_NE(at, std::string::npos) << i << ": " << text;
    }
  }
}

}  // namespace
}  // namespace distill
