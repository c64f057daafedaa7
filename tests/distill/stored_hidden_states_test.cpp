// From a teacher's layers through the generation and the shards to the student's loss.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/atomic_file.h"
#include "core/text_file.h"
#include "data/trace_reader.h"
#include "distill/capture.h"
#include "distill/retokenised_traces.h"
#include "distill/trainer.h"
#include "tests/data/expect_error.h"
#include "tests/distill/tiny_model_folder.h"
#include "tests/nn/letter_tokenizer.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

using data::HiddenType;
using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kVocab = 50;

class StoredHiddenStates : public testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(1); }

  // A teacher of three layers and width 32, a student of two and width 24, both computing in fp32.
  static std::unique_ptr<nn::CausalLM> make_teacher() {
    nlohmann::json config = tiny_config(kVocab, 3);
    config["initializer_range"] = 0.3;
    return student::make_dense_model(config, {.compute = at::kFloat}, 1);
  }
  static std::unique_ptr<nn::CausalLM> make_student() {
    nlohmann::json config = tiny_config(kVocab, 2);
    config["hidden_size"] = 24;
    return student::make_dense_model(config, {.compute = at::kFloat, .trainable = true}, 2);
  }

  std::shared_ptr<const data::TraceReader> capture(const std::string& name, std::vector<int64_t> layers,
                                                   HiddenType type = HiddenType::kBf16) {
    data::TraceProvenance provenance = data::sample_provenance("topk:8", kVocab);
    provenance.sampling.max_new_tokens = 12;
    provenance.tokenizer = "letters";
    provenance.chat_template = "";
    if (!layers.empty()) {
      provenance.hidden_states =
          data::HiddenStatesSpec{.layers = std::move(layers), .last_layer = 3, .width = 32, .type = type};
    }
    std::vector<data::Prompt> prompts;
    for (int i = 0; i < 20; ++i) {
      prompts.push_back(
          {.id = fmt::format("p{}", i), .text = std::string(static_cast<size_t>(1 + i % 7), 'a'), .line = 1});
    }
    capture_traces({.model = *teacher_,
                    .tokenizer = std::make_shared<nn::LetterTokenizer>(),
                    .chat_template = nullptr,
                    .stop_tokens = {0}},
                   prompts, provenance, {.directory = folder_.path() / name, .samples = 2, .batch = 5});
    return std::make_shared<const data::TraceReader>(data::TraceReader::open(folder_.path() / name));
  }

  static data::TrainingBatch batch_of(const std::shared_ptr<const data::TraceReader>& traces,
                                      const Objective& objective) {
    return data::Batcher(traces, {.max_tokens = 256, .hidden_layers = objective.stored_layers()}).next();
  }

  TrainingSummary train_on(const std::shared_ptr<const data::TraceSource>& traces, const std::string& run,
                           const ObjectiveOptions& objective, int64_t steps, std::vector<OnlineTeacher> teachers = {}) {
    const auto student = make_student();
    Recipe recipe;
    recipe.objective = objective;
    recipe.schedule = {.shape = ScheduleShape::kConstant, .peak = 0.01, .warmup_steps = 1, .steps = steps};
    recipe.batch_tokens = 128;
    recipe.micro_batch_tokens = 64;
    recipe.validation_share = 0.2;
    recipe.validate_every = 10;
    recipe.compute = at::kFloat;
    return train({.student = *student,
                  .package = {.config = {{"vocab_size", kVocab}}, .files = {}},
                  .traces = traces,
                  .run = folder_.path() / run,
                  .recipe = recipe,
                  .teachers = std::move(teachers)});
  }

  std::vector<double> distances(const std::string& run) const {
    std::vector<double> result;
    core::for_each_json_line(folder_.path() / run / "metrics.jsonl", [&](size_t, nlohmann::json&& line) {
      if (line["kind"] == "train") result.push_back(line["hidden_states"].get<double>());
    });
    return result;
  }

  TemporaryFolder folder_{TemporaryFolder::memory()};
  std::shared_ptr<nn::CausalLM> teacher_ = make_teacher();
};

TEST_F(StoredHiddenStates, AreThoseThatTheTeacherRunDirectlyHasBeforeEachToken) {
  for (const auto type : {HiddenType::kBf16, HiddenType::kFp8}) {
    const auto traces = capture(std::string(to_string(type)), {0, 1, 2, 3}, type);
    const data::HiddenStatesSpec& spec = *traces->provenance().hidden_states;
    for (size_t i = 0; i < traces->size(); ++i) {
      const data::TraceDocument document = traces->read_document(i);
      nn::LayerTap tap{.layers = spec.layers};
      teacher_->forward_tapped(nn::PackedBatch::from_sequences({document.tokens}), nullptr, nullptr, tap);
      const auto stored = traces->hidden_states(i);
      ASSERT_EQ(stored.size(), document.completion().size() * spec.position_bytes());
      std::vector<float> values(32);
      for (int32_t j = 0; j < document.completion_length(); ++j) {
        const auto position = stored.subspan(static_cast<size_t>(j) * spec.position_bytes(), spec.position_bytes());
        for (size_t layer = 0; layer < 4; ++layer) {
          spec.decode(position, layer, values);
          const at::Tensor expected = tap.states[layer][document.prompt_length - 1 + j];
          const at::Tensor largest = expected.abs().max();
          const at::Tensor bound =
              (type == HiddenType::kBf16 ? expected.abs() / 256 : at::maximum(expected.abs() / 16, largest / 458752)) +
              1e-5 * largest;  // the cache sums in another order
          EXPECT_TRUE(((at::tensor(values) - expected).abs() <= bound).all().item<bool>()) << layer;
        }
      }
    }
  }
}

TEST_F(StoredHiddenStates, GiveTheLossOfATeacherThatIsHereWithinTheirRounding) {
  for (const auto& [type, tolerance] : {std::pair{HiddenType::kBf16, 2e-3}, {HiddenType::kFp8, 2e-2}}) {
    const auto traces = capture("set-" + std::string(to_string(type)), {1, 3}, type);
    for (const auto distance : {HiddenDistance::kMse, HiddenDistance::kCosine}) {
      ObjectiveOptions options{.hidden_states = {.distance = distance, .weight = 2}};
      options.hidden_states.layers = {{.student = 0, .teacher = 1}, {}};
      const auto student = make_student();
      const Objective stored(options, *traces, student->shape(), 5);
      const Objective online(options, {{.model = teacher_}}, student->shape(), 5);
      EXPECT_THAT(stored.stored_layers(), testing::ElementsAre(1, 3));
      EXPECT_TRUE(online.stored_layers().empty());
      ASSERT_EQ(stored.parameters().size(), 2U);
      const data::TrainingBatch batch = batch_of(traces, stored);
      const BatchLoss a = stored(*student, batch, 0.1), b = online(*student, batch, 0.1);
      EXPECT_NEAR(a.sums.hidden_states, b.sums.hidden_states, tolerance * b.sums.hidden_states);
      a.loss.backward();
      b.loss.backward();
      for (size_t i = 0; i < 2; ++i) {
        const at::Tensor mine = stored.parameters()[i].second, theirs = online.parameters()[i].second;
        EXPECT_TRUE(mine.equal(theirs)) << "projectors begin alike";
        EXPECT_LT((mine.grad() - theirs.grad()).norm().item<double>(),
                  10 * tolerance * theirs.grad().norm().item<double>());
      }
    }
  }
}

TEST_F(StoredHiddenStates, OfSeveralPairsOfLayersCountByTheMeanOfTheirDistances) {
  const auto traces = capture("set", {0, 2, 3});
  const auto student = make_student();
  const ObjectiveOptions options{.hidden_states = {.weight = 1, .layers = {{1, 2}, {2, 0}, {}}}};
  for (const bool here : {false, true}) {
    const Objective objective = here ? Objective(options, {{.model = teacher_}}, student->shape(), 5)
                                     : Objective(options, *traces, student->shape(), 5);
    const data::TrainingBatch batch = batch_of(traces, objective);
    const nn::PackedBatch packed{
        .tokens = batch.tokens, .positions = batch.positions, .sequence_offsets = batch.sequence_offsets};
    nn::LayerTap mine{.layers = {1, 2, 2}}, theirs{.layers = {2, 0, 3}};
    student->forward_tapped(packed, nullptr, nullptr, mine);
    teacher_->forward_tapped(packed, nullptr, nullptr, theirs);
    double expected = 0;
    for (size_t i = 0; i < 3; ++i) {
      const at::Tensor seen = at::matmul(mine.states[i], objective.parameters()[i].second.t());
      expected +=
          (seen - theirs.states[i]).square().mean(-1).index_select(0, batch.target_rows).sum().item<double>() / 3;
    }
    const BatchLoss loss = objective(*student, batch, 1);
    EXPECT_NEAR(loss.sums.hidden_states, expected, (here ? 1e-5 : 2e-3) * expected);
    loss.loss.backward();
    for (const auto& [name, projector] : objective.parameters()) EXPECT_TRUE(projector.grad().defined()) << name;
  }
}

TEST_F(StoredHiddenStates, TrainAndResumeAsThoseOfATeacherThatIsHere) {
  const auto traces = capture("set", {3});
  const ObjectiveOptions options{.hard_label_weight = 1, .hidden_states = {.weight = 1}};
  const auto straight = train_on(traces, "straight", options, 30);
  train_on(traces, "parts", options, 11);
  const auto parts = train_on(traces, "parts", options, 30);
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    EXPECT_EQ(core::read_file(parts.checkpoint / file), core::read_file(straight.checkpoint / file)) << file;
  }
  const auto found = distances("straight");
  ASSERT_EQ(found.size(), 30U);
  EXPECT_LT(found.back(), 0.8 * found.front());
  const auto online = train_on(traces, "online", options, 30, {{.model = teacher_}});
  const auto expected = distances("online");
  for (size_t i = 0; i < 30; ++i) EXPECT_NEAR(found[i], expected[i], 0.01 * expected[i]) << i;
  EXPECT_NEAR(straight.validation->loss(), online.validation->loss(), 0.01 * online.validation->loss());
}

TEST_F(StoredHiddenStates, AreRefusedWhereTheyAreNotThereOrDoNotFit) {
  const auto traces = capture("set", {0, 2});
  const auto student = make_student();
  const auto error_with = [&](const data::TraceSource& source, std::vector<LayerPair> pairs) {
    const ObjectiveOptions options{.hidden_states = {.weight = 1, .layers = std::move(pairs)}};
    return error_of([&] { Objective(options, source, student->shape(), 5); });
  };
  EXPECT_EQ(error_with(*traces, {{kLastLayer, 2}}), "");
  EXPECT_THAT(error_with(*capture("none", {}), {{}}), AllOf(HasSubstr("not in these traces"), HasSubstr("--online")));
  EXPECT_THAT(error_with(*traces, {{}}), HasSubstr("the teacher's layers 0, 2, not of layer 3"));
  EXPECT_THAT(error_with(*traces, {{kLastLayer, 4}}), HasSubstr("the teacher has no layer 4"));
  EXPECT_THAT(error_with(*traces, {{3, 2}}),
              HasSubstr("the student has no layer 3: its layers are 0 (the embedding) to 2"));
  const auto letters = std::make_shared<nn::LetterTokenizer>();
  const TextTools tools{.tokenizer = letters, .chat_template = nullptr, .stop_tokens = {0}};
  const RetokenisedTraces other(traces, tools, tools, true);
  EXPECT_FALSE(other.provenance().hidden_states.has_value());
  EXPECT_THAT(error_with(other, {{kLastLayer, 2}}), HasSubstr("student with another tokenizer"));
}

TEST_F(StoredHiddenStates, OfAnotherWidthThanThoseThatARunBeganWithAreRefused) {
  const ObjectiveOptions options{.hidden_states = {.weight = 1}};
  train_on(capture("set", {3}), "run", options, 2);
  nlohmann::json config = tiny_config(kVocab, 3);
  config["hidden_size"] = 40;
  const std::shared_ptr<nn::CausalLM> wider = student::make_dense_model(config, {.compute = at::kFloat}, 1);
  EXPECT_THAT(error_of([&] { train_on(capture("set", {3}), "run", options, 4, {{.model = wider}}); }),
              AllOf(HasSubstr("projector.0"), HasSubstr("[32, 24]"), HasSubstr("[40, 24]")));
}

}  // namespace
}  // namespace distill
