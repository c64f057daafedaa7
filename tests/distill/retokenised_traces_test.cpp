#include "distill/retokenised_traces.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "core/philox.h"
#include "data/batcher.h"
#include "data/trace_reader.h"
#include "data/trace_writer.h"
#include "distill/objective.h"
#include "kernels/head_loss/reference.h"
#include "tests/data/expect_error.h"
#include "tests/data/sample_traces.h"
#include "tests/distill/tiny_model.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::filesystem::path tokenizer_file(const std::string& name) {
  return std::filesystem::path(DISTILL_TEST_DATA).parent_path().parent_path() / "data/testdata/tokenizers" /
         (name + ".json");
}

TextTools tools(const std::string& tokenizer, const std::string& family, const std::string& end) {
  TextTools tools{.tokenizer = data::Tokenizer::from_json_file(tokenizer_file(tokenizer)),
                  .chat_template = data::ChatTemplate::from_family(family, "", ""),
                  .stop_tokens = {}};
  tools.stop_tokens = {*tools.tokenizer->token_to_id(end)};
  return tools;
}

class RetokenisedTracesTest : public testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(1); }

  // Conversations, each answered with one of the texts; an empty one is a prompt of special tokens without sense.
  std::shared_ptr<const data::TraceReader> traces(const std::vector<std::string>& answers,
                                                  const std::string& targets = "topk:6", bool conversations = true) {
    data::TraceProvenance provenance = data::sample_provenance(targets, teacher_.tokenizer->vocab_size());
    provenance.tokenizer = teacher_.tokenizer->fingerprint();
    provenance.chat_template = conversations ? teacher_.chat_template->fingerprint() : "";
    const auto folder = folder_.path() / std::to_string(folders_++);
    data::TraceWriter writer(folder, provenance);
    for (size_t i = 0; i < answers.size(); ++i) {
      data::Trace trace;
      trace.document.key = {"prompt-" + std::to_string(i), 0};
      const std::vector<data::ChatMessage> messages{{"system", "Be brief."},
                                                    {"user", "The node license " + answers[i]}};
      trace.document.tokens = answers[i].empty() ? teacher_.tokenizer->encode("a<|im_end|>", false)
                              : conversations
                                  ? teacher_.tokenizer->encode(teacher_.chat_template->render(messages, true), false)
                                  : teacher_.tokenizer->encode("The node license " + answers[i]);
      trace.document.prompt_length = static_cast<int32_t>(trace.document.tokens.size());
      for (const int32_t id : teacher_.tokenizer->encode(answers[i], false)) trace.document.tokens.push_back(id);
      trace.document.tokens.push_back(teacher_.stop_tokens.front());
      data::TargetCapture capture(provenance, trace.document.key);
      for (int32_t k = trace.document.prompt_length; k < static_cast<int32_t>(trace.document.tokens.size()); ++k) {
        core::Philox random(i, static_cast<uint64_t>(k), 0);
        std::vector<float> logits(static_cast<size_t>(provenance.vocab_size));
        for (float& logit : logits) logit = static_cast<float>(2 * random.next_normal());
        logits[static_cast<size_t>(trace.document.tokens[static_cast<size_t>(k)])] += 8;
        capture.add(logits);
      }
      trace.targets = capture.finish();
      writer.append(trace);
    }
    writer.finish();
    return std::make_shared<const data::TraceReader>(data::TraceReader::open(folder));
  }

  TemporaryFolder folder_{TemporaryFolder::memory()};
  int folders_ = 0;
  TextTools teacher_ = tools("qwen2", "chatml", "<|im_end|>");
  // Its files name another end first than the one that its template writes.
  TextTools student_ = [] {
    TextTools student = tools("llama3", "llama3", "<|end_of_text|>");
    student.stop_tokens.push_back(*student.tokenizer->token_to_id("<|eot_id|>"));
    return student;
  }();
  const std::vector<std::string> answers_{"it is 12345 copy", "node license", "שלום 😀", " the the  in on"};
};

TEST_F(RetokenisedTracesTest, AreTheTextInTheStudentsTokensAndTemplate) {
  const auto original = traces(answers_);
  const RetokenisedTraces retokenised(original, teacher_, student_, /*distributions=*/true);
  ASSERT_EQ(retokenised.size(), answers_.size());
  for (size_t i = 0; i < retokenised.size(); ++i) {
    const data::Trace trace = retokenised.read(i);
    EXPECT_EQ(trace.document.key, original->key(i));
    std::string answer = answers_[0];
    for (const auto& text : answers_) {
      if (trace.document.key.prompt_id == "prompt-" + std::to_string(&text - answers_.data())) answer = text;
    }
    const std::vector<data::ChatMessage> messages{{"system", "Be brief."}, {"user", "The node license " + answer}};
    const auto prompt = student_.tokenizer->encode(student_.chat_template->render(messages, true), false);
    EXPECT_THAT(trace.document.prompt(), testing::ElementsAreArray(prompt));
    auto completion = student_.tokenizer->encode(answer, false);
    completion.push_back(*student_.tokenizer->token_to_id("<|eot_id|>"));
    EXPECT_THAT(trace.document.completion(), testing::ElementsAreArray(completion));
    EXPECT_EQ(retokenised.lengths(i).prompt, trace.document.prompt_length);
    EXPECT_EQ(retokenised.lengths(i).completion, trace.document.completion_length());
    ASSERT_EQ(trace.targets.positions(), completion.size());
    EXPECT_EQ(retokenised.read_document(i).tokens, trace.document.tokens);
  }
  EXPECT_EQ(retokenised.provenance().tokenizer, student_.tokenizer->fingerprint());
  EXPECT_EQ(retokenised.provenance().vocab_size, student_.tokenizer->vocab_size());

  const RetokenisedTraces text(original, teacher_, student_, /*distributions=*/false);
  const data::Trace trace = text.read(0);
  EXPECT_THAT(trace.targets.ids, testing::ElementsAreArray(trace.document.completion()));
}

TEST_F(RetokenisedTracesTest, ReadPlainTextBehindTheStudentsOwnBeginning) {
  const auto original = traces(answers_, "topk:6", /*conversations=*/false);
  TextTools student = student_;
  student.chat_template = nullptr;
  const RetokenisedTraces retokenised(original, teacher_, student, true);
  const auto document = retokenised.read_document(0);
  const std::string answer = answers_[static_cast<size_t>(document.key.prompt_id.back() - '0')];
  EXPECT_THAT(document.prompt(), testing::ElementsAreArray(student_.tokenizer->encode("The node license " + answer)));
  EXPECT_EQ(document.tokens.back(), student_.stop_tokens.front());
}

TEST_F(RetokenisedTracesTest, LossAndGradientAreThoseOfTheFormulaInFp64) {
  for (const char* targets : {"topk:6", "sampled:20", "full"}) {
    const auto retokenised =
        std::make_shared<const RetokenisedTraces>(traces(answers_, targets), teacher_, student_, true);
    TinyModel model(student_.tokenizer->vocab_size(), 12, 1);
    const auto batch = data::Batcher(retokenised, {.max_tokens = 1024}).next();
    ASSERT_EQ(batch.documents.size(), answers_.size());
    const Objective objective({.hard_label_weight = 0.25}, retokenised->provenance().targets,
                              retokenised->carried_over());
    const BatchLoss loss = objective(model, batch, 1.0);
    loss.loss.backward();
    const at::Tensor weight = model.parameters()[0].second;

    // The hidden states' part of the gradient goes through the model in both.
    TinyModel same(student_.tokenizer->vocab_size(), 12, 1);
    const at::Tensor hidden = same.forward(
        {.tokens = batch.tokens, .positions = batch.positions, .sequence_offsets = batch.sequence_offsets});
    const kernels::HeadLossTargets plain{.rows = batch.target_rows,
                                         .labels = batch.labels.index_select(0, batch.target_rows),
                                         .offsets = batch.target_offsets,
                                         .ids = batch.target_ids,
                                         .weights = batch.target_weights,
                                         .uncovered = batch.target_uncovered};
    const auto expected = kernels::reference::head_loss(hidden.to(at::kDouble), same.head_weight().to(at::kDouble),
                                                        plain, {.divergence = 0.75, .cross_entropy = 0.25}, 1.0, {});
    expected.loss.backward();
    EXPECT_NEAR(loss.loss.item<double>() / expected.loss.item<double>(), 1, 1e-5) << targets;
    const at::Tensor gradient = same.parameters()[0].second.grad();
    EXPECT_LT((weight.grad() - gradient).norm().item<double>(), 1e-5 * gradient.norm().item<double>()) << targets;
  }
}

TEST_F(RetokenisedTracesTest, LeaveOutWhatTheyCannotCarryOver) {
  const auto original = traces({"node license", ""});
  const auto retokenised = std::make_shared<const RetokenisedTraces>(original, teacher_, student_, true);
  int64_t documents = 0;
  data::Batcher batcher(retokenised, {.max_tokens = 1024});
  while (const auto batch = batcher.next_in_epoch()) documents += static_cast<int64_t>(batch->documents.size());
  EXPECT_EQ(documents, 1);
  EXPECT_THAT(error_of([&] { RetokenisedTraces(traces({""}), teacher_, student_, true); }),
              AllOf(HasSubstr("no document"), HasSubstr("special tokens")));
}

TEST_F(RetokenisedTracesTest, SayWhichTemplateIsMissing) {
  TextTools bare = student_;
  bare.chat_template = nullptr;
  EXPECT_THAT(error_of([&] { RetokenisedTraces(traces(answers_), teacher_, bare, true); }),
              HasSubstr("the student has no chat template"));
}

TEST_F(RetokenisedTracesTest, SupportTheForwardKlAlone) {
  const auto spec = data::TargetSpec::parse("full");
  EXPECT_NO_THROW(Objective({}, spec, /*carried_over=*/true));
  EXPECT_THAT(error_of([&] { Objective({.divergence = kernels::Divergence::kReverseKl}, spec, true); }),
              AllOf(HasSubstr("full of another tokenizer"), HasSubstr("several pieces"), HasSubstr("forward_kl")));
  EXPECT_THAT(error_of([&] { Objective({.teacher_temperature = 2.0}, spec, true); }), HasSubstr("temperature 1 only"));
  data::TargetSpec tempered = spec;
  tempered.temperature = 2;
  EXPECT_THAT(error_of([&] { Objective({}, tempered, true); }), HasSubstr("temperature 1 only"));
  EXPECT_THAT(error_of([&] { Objective({.weights = {.entropy_power = 1}}, spec, true); }),
              HasSubstr("the written token"));
  EXPECT_NO_THROW(Objective({.hard_label_weight = 1}, tempered, true));
}

}  // namespace
}  // namespace distill
