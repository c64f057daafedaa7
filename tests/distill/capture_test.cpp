#include "distill/capture.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/interrupt.h"
#include "core/text_file.h"
#include "data/target_encoder.h"
#include "data/trace_reader.h"
#include "tests/nn/context_model.h"
#include "tests/nn/letter_tokenizer.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

using data::TraceKey;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

// Asks the process to stop during one of its forwards.
class InterruptedModel final : public nn::ContextModel {
 public:
  at::Tensor forward(const nn::PackedBatch& batch, nn::KvCache& cache, const nn::CacheSlots& slots) override {
    if (--forwards_left == 0) ::raise(SIGINT);
    return ContextModel::forward(batch, cache, slots);
  }
  using ContextModel::forward;
  int forwards_left = -1;
};

class Capture : public testing::Test {
 protected:
  Capture() {
    for (int i = 0; i < 12; ++i) {
      prompts_.push_back({.id = fmt::format("p{}", i),
                          .text = std::string("the quick brown fox jumps").substr(0, static_cast<size_t>(1 + 2 * i)),
                          .line = static_cast<size_t>(i + 1)});
    }
    provenance_.teacher = "test";
    provenance_.weights = provenance_.config = std::string(64, 'a');
    provenance_.tokenizer = "letters";
    provenance_.vocab_size = 50;
    provenance_.sampling.max_new_tokens = 20;
    provenance_.sampling.seed = 3;
    provenance_.targets = data::TargetSpec::parse("topk:8");
  }

  CaptureSummary capture(const std::string& folder, CaptureOptions options = {}) {
    options.directory = folder_.path() / folder;
    return capture_traces({.model = model_,
                           .tokenizer = std::make_shared<nn::LetterTokenizer>(),
                           .chat_template = nullptr,
                           .stop_tokens = {0}},
                          prompts_, provenance_, options);
  }

  std::map<TraceKey, data::Trace> read(const std::string& folder) {
    const auto reader = data::TraceReader::open(folder_.path() / folder);
    std::map<TraceKey, data::Trace> traces;
    for (size_t i = 0; i < reader.size(); ++i) {
      data::Trace trace = reader.read(i);
      const TraceKey key = trace.document.key;
      EXPECT_TRUE(traces.emplace(key, std::move(trace)).second) << key.prompt_id << " came twice";
    }
    return traces;
  }

  std::map<std::string, std::string> shard_bytes(const std::string& folder) {
    std::map<std::string, std::string> result;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path() / folder)) {
      if (entry.path().extension() == ".h5") result[entry.path().filename().string()] = core::read_file(entry.path());
    }
    return result;
  }

  static void expect_same(const std::map<TraceKey, data::Trace>& a, const std::map<TraceKey, data::Trace>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (const auto& [key, trace] : a) {
      const data::Trace& other = b.at(key);
      EXPECT_EQ(trace.document.tokens, other.document.tokens);
      EXPECT_EQ(trace.document.finish_reason, other.document.finish_reason);
      EXPECT_EQ(trace.document.log_probability, other.document.log_probability);
      EXPECT_EQ(trace.targets.ids, other.targets.ids);
      EXPECT_EQ(trace.targets.weights, other.targets.weights);
    }
  }

  TemporaryFolder folder_;
  InterruptedModel model_;
  std::vector<data::Prompt> prompts_;
  data::TraceProvenance provenance_;
};

TEST_F(Capture, WritesEachAnswerWithTheTeachersDistributionAtEachOfItsTokens) {
  const CaptureSummary summary = capture("traces", {.directory = {}, .samples = 3, .batch = 4});
  const auto traces = read("traces");
  EXPECT_EQ(traces.size(), 36u);
  EXPECT_EQ(summary.traces, 36u);
  EXPECT_EQ(summary.total_traces, 36u);
  EXPECT_GT(summary.total_bytes, 0u);
  uint64_t tokens = 0;
  for (const auto& [key, trace] : traces) {
    const auto& document = trace.document;
    tokens += document.completion().size();
    EXPECT_EQ(document.seed, 3u);
    ASSERT_EQ(trace.targets.positions(), document.completion().size());
    const at::Tensor logits = model_.logits(model_.forward(nn::PackedBatch::from_sequences({document.tokens})));
    for (size_t j = 0; j < trace.targets.positions(); ++j) {
      const at::Tensor row = logits[static_cast<int64_t>(j) + document.prompt_length - 1];
      data::SparseTargets expected;
      data::encode_target({row.const_data_ptr<float>(), 50}, provenance_.targets, expected);
      const auto actual = trace.targets[j];
      EXPECT_EQ(std::set<int32_t>(actual.ids.begin(), actual.ids.end()),
                std::set<int32_t>(expected.ids.begin(), expected.ids.end()));
      EXPECT_NEAR(actual.uncovered, expected.uncovered[0], 1e-2);
    }
  }
  EXPECT_EQ(summary.completion_tokens, tokens);
  EXPECT_EQ(summary.total_completion_tokens, tokens);
  EXPECT_EQ(summary.finish_reasons[0] + summary.finish_reasons[1], 36u);
  EXPECT_GT(summary.finish_reasons[0], 0u);
  EXPECT_GT(summary.finish_reasons[1], 0u);
}

TEST_F(Capture, MakesTheSameTracesInAnyBatch) {
  capture("alone", {.directory = {}, .samples = 2, .batch = 1});
  capture("together", {.directory = {}, .samples = 2, .batch = 9});
  expect_same(read("alone"), read("together"));
}

TEST_F(Capture, VerifiesWhatComesAfterReasoning) {
  // "c" opens reasoning, "d" ends it.
  provenance_.reasoning = data::ReasoningTokens{.open = 3, .close = 4};
  provenance_.sampling.thinking_budget = 5;
  for (auto& prompt : prompts_) {
    *prompt.text += "c";
    prompt.answer = "";
    prompt.verifier = "exact";
  }
  const CaptureSummary summary = capture("traces", {.directory = {}, .samples = 4});
  uint64_t reasoning = 0;
  for (auto& [key, trace] : read("traces")) {
    const int32_t length = provenance_.reasoning_length(trace.document);
    reasoning += static_cast<uint64_t>(length);
    EXPECT_GT(length, 0);
    const auto answer =
        nn::LetterTokenizer().decode(trace.document.completion().subspan(static_cast<size_t>(length)), true);
    EXPECT_EQ(trace.document.verdict, answer.empty() ? data::Verdict::kCorrect : data::Verdict::kIncorrect) << answer;
  }
  EXPECT_EQ(summary.reasoning_tokens, reasoning);
  EXPECT_EQ(data::TraceReader::open(folder_.path() / "traces").provenance().reasoning, provenance_.reasoning);
  provenance_.sampling.thinking_budget.reset();
  EXPECT_THAT([&] { capture("traces"); }, ThrowsMessage<core::Error>(HasSubstr("thinking_budget: 5 against null")));
  provenance_.reasoning.reset();
  provenance_.sampling.thinking_budget = 5;
  EXPECT_THAT([&] { capture("others"); }, ThrowsMessage<core::UsageError>(HasSubstr("no tokens <think>")));
}

TEST_F(Capture, GoesOnWhereASignalStoppedIt) {
  core::install_interrupt_handlers();
  const CaptureOptions options{.directory = {}, .samples = 2, .batch = 3};
  for (const bool hidden : {false, true}) {
    if (hidden) provenance_.hidden_states = data::HiddenStatesSpec{.layers = {0, 1}, .last_layer = 1, .width = 4};
    const std::string traces = hidden ? "traces with states" : "traces", whole = traces + " in one go";
    model_.forwards_left = 40;
    const CaptureSummary stopped = capture(traces, options);
    core::clear_interrupt();
    EXPECT_TRUE(stopped.interrupted);
    EXPECT_GT(stopped.traces, 0u);
    EXPECT_LT(stopped.traces, 24u);
    EXPECT_EQ(shard_bytes(traces), (std::map<std::string, std::string>{}));  // what is finished is in the journal

    const CaptureSummary rest = capture(traces, options);
    EXPECT_FALSE(rest.interrupted);
    EXPECT_EQ(rest.already_there, stopped.traces);
    EXPECT_EQ(rest.traces, 24 - stopped.traces);
    capture(whole, options);
    EXPECT_TRUE(shard_bytes(traces) == shard_bytes(whole));
  }
}

TEST_F(Capture, RefusesHiddenStatesForWhichADocumentHasNoRoom) {
  provenance_.hidden_states = data::HiddenStatesSpec{.layers = {0, 1}, .last_layer = 1, .width = int64_t{5} << 20};
  provenance_.sampling.max_new_tokens = 1000;  // of which the context leaves 200
  EXPECT_THAT([&] { capture("long"); },
              ThrowsMessage<core::UsageError>(AllOf(HasSubstr("of 200 tokens may take 4.19 GB"), HasSubstr("fp8"))));
  EXPECT_FALSE(std::filesystem::exists(folder_.path() / "long"));
}

TEST_F(Capture, MakesOnlyWhatIsMissingWhenMoreSamplesAreWanted) {
  capture("traces", {.directory = {}, .samples = 1});
  const auto before = read("traces");
  const CaptureSummary more = capture("traces", {.directory = {}, .samples = 3});
  EXPECT_EQ(more.already_there, 12u);
  EXPECT_EQ(more.traces, 24u);
  const auto after = read("traces");
  for (const auto& [key, trace] : before) EXPECT_EQ(after.at(key).document.tokens, trace.document.tokens);
  EXPECT_EQ(capture("traces", {.directory = {}, .samples = 3}).traces, 0u);
}

TEST_F(Capture, RefusesADirectoryOfAnotherTeacherOrOtherSettings) {
  capture("traces");
  const auto before = read("traces");
  provenance_.sampling.seed = 4;
  EXPECT_THAT([&] { capture("traces"); }, ThrowsMessage<core::Error>(HasSubstr("seed")));
  provenance_.sampling.seed = 3;
  provenance_.weights = std::string(64, 'b');
  EXPECT_THAT([&] { capture("traces"); }, ThrowsMessage<core::Error>(HasSubstr("weights")));
  expect_same(read("traces"), before);
}

TEST_F(Capture, ReportsPromptsThatCannotBeAnsweredAndAnswersTheOthers) {
  prompts_[4].text = std::string(500, 'x');
  prompts_[7].text.reset();
  prompts_[7].messages = {{.role = "user", .content = "hello"}};
  const CaptureSummary summary = capture("traces");
  EXPECT_EQ(summary.traces, 10u);
  ASSERT_EQ(summary.rejected.size(), 2u);
  EXPECT_EQ(summary.rejected[0].id, "p4");
  EXPECT_THAT(summary.rejected[0].reason, AllOf(HasSubstr("500 tokens"), HasSubstr("context of 200")));
  EXPECT_EQ(summary.rejected[1].id, "p7");
  EXPECT_THAT(summary.rejected[1].reason, HasSubstr("--chat-template"));
  EXPECT_EQ(summary.to_json()["rejected"].size(), 2u);
}

TEST_F(Capture, ChecksAnswers) {
  capture("unchecked");
  for (const auto& [key, trace] : read("unchecked")) {
    EXPECT_EQ(trace.document.verdict, data::Verdict::kUnchecked);
    if (key.prompt_id == "p2" || key.prompt_id == "p3") {
      data::Prompt& prompt = prompts_[key.prompt_id == "p2" ? 2 : 3];
      prompt.verifier = "exact";
      prompt.answer = key.prompt_id == "p2" ? nn::LetterTokenizer().decode(trace.document.completion(), true) : "wrong";
    }
  }
  const CaptureSummary summary = capture("checked");
  EXPECT_THAT(summary.verdicts, ElementsAre(10u, 1u, 1u));
  auto traces = read("checked");
  EXPECT_EQ((traces[{"p2", 0}].document.verdict), data::Verdict::kCorrect);
  EXPECT_EQ((traces[{"p3", 0}].document.verdict), data::Verdict::kIncorrect);
}

TEST_F(Capture, NamesAnUnknownVerifierBeforeItGenerates) {
  prompts_[5].verifier = "oracle";
  prompts_[5].answer = "42";
  EXPECT_THAT([&] { capture("traces"); },
              ThrowsMessage<core::Error>(AllOf(HasSubstr("\"p5\" (line 6)"), HasSubstr("oracle"))));
  EXPECT_FALSE(std::filesystem::exists(folder_.path() / "traces"));
}

}  // namespace
}  // namespace distill
