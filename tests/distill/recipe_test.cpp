#include "distill/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/atomic_file.h"
#include "core/error.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

using testing::HasSubstr;

Recipe read(const std::string& yaml) {
  const TemporaryFolder folder;
  core::write_file_atomically(folder.path() / "recipe.yaml", yaml);
  return Recipe::from_file(folder.path() / "recipe.yaml");
}

std::string usage_error(const std::string& yaml) {
  try {
    read(yaml);
  } catch (const core::UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Recipe, ReadsBackWhatItWrites) {
  Recipe recipe;
  recipe.objective = {.hard_label_weight = 0.25,
                      .tail = kernels::TailRule::kRenormalise,
                      .hidden_states = {.distance = HiddenDistance::kCosine, .weight = 2, .layers = {{4, 8}, {}}},
                      .other_tokenizer = OtherTokenizer::kAligned};
  recipe.schedule = {.shape = ScheduleShape::kWsd, .peak = 3e-4, .floor = 0.0, .warmup_steps = 7, .steps = 99};
  recipe.compute = at::kFloat;
  recipe.seed = 5;
  const Recipe same = Recipe::from_json(recipe.to_json(), "recipe");
  EXPECT_EQ(same.to_json(), recipe.to_json());
  EXPECT_EQ(same.difference(recipe), "");
}

TEST(Recipe, TakesDefaultsForWhatIsMissing) {
  const Recipe recipe = read("optimizer: {learning_rate: 2e-3}\n");
  EXPECT_DOUBLE_EQ(recipe.schedule.peak, 2e-3);
  EXPECT_EQ(recipe.batch_tokens, Recipe().batch_tokens);
}

TEST(Recipe, EveryExampleIsValid) {
  for (const auto& entry : std::filesystem::directory_iterator(DISTILL_RECIPES)) {
    if (entry.path().extension() != ".yaml") continue;
    EXPECT_NO_THROW(Recipe::from_file(entry.path())) << entry.path();
  }
}

TEST(Recipe, SuggestsTheNearestKey) {
  EXPECT_THAT(usage_error("optimizer:\n  learning_rat: 1e-3\n"),
              HasSubstr("optimizer.learning_rat: unknown key, did you mean \"learning_rate\"?"));
  EXPECT_THAT(usage_error("optimiser:\n  learning_rate: 1e-3\n"), HasSubstr("did you mean \"optimizer\"?"));
}

TEST(Recipe, SaysWhatMakesNoSense) {
  EXPECT_THAT(usage_error("steps: 0\n"), HasSubstr("steps: must be at least 1"));
  EXPECT_THAT(usage_error("objective: {hard_label_weight: 1.5}\n"),
              HasSubstr("objective.hard_label_weight: 1.5 is not in [0, 1]"));
  EXPECT_THAT(usage_error("objective: {tail: drop}\n"), HasSubstr("objective.tail: 'drop' is neither ghost nor"));
  EXPECT_THAT(usage_error("schedule: {shape: cosin}\n"), HasSubstr("schedule.shape: schedule 'cosin' is none of"));
  EXPECT_THAT(usage_error("precision: fp8\n"), HasSubstr("precision: 'fp8' is neither fp32 nor bf16"));
  EXPECT_THAT(usage_error("optimizer: {learning_rate: .inf}\n"), HasSubstr("learning_rate: inf is not in"));
}

TEST(Recipe, LetsSharesOfAnswersAddUpToAll) {
  for (const auto& [student, teacher] : {std::pair{"0.8", "0.2"}, {"0.9", "0.1"}, {"0.7", "0.3"}, {"0", "1"}}) {
    const std::string shares = fmt::format("on_policy: {{student_share: {}, teacher_share: {}}}\n", student, teacher);
    EXPECT_NO_THROW(read(shares)) << shares;
  }
  EXPECT_THAT(usage_error("on_policy: {student_share: 0.8, teacher_share: 0.3}\n"),
              testing::AllOf(HasSubstr("student_share"), HasSubstr("teacher_share"), HasSubstr("more than 1")));
  EXPECT_THAT(usage_error("on_policy: {student_share: 1.1}\n"), HasSubstr("student_share: 1.1 is not in [0, 1]"));
}

TEST(Recipe, NamesPairsOfLayers) {
  const auto layers = [](const std::string& yaml) {
    return read("objective: {hidden_states: {layers: " + yaml + "}}\n").objective.hidden_states.layers;
  };
  const auto pairs = layers("{last: last, 10: 20, 4: last, 0: 1}");
  ASSERT_EQ(pairs.size(), 4U);
  const std::vector<std::pair<int64_t, int64_t>> expected{{0, 1}, {4, kLastLayer}, {10, 20}, {kLastLayer, kLastLayer}};
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(std::pair(pairs[i].student, pairs[i].teacher), expected[i]);
  EXPECT_EQ(Recipe().objective.hidden_states.layers.size(), 1U);
  for (const char* wrong : {"{}", "[1, 2]", "{first: last}", "{1: -1}", "{1: 2.5}", "{1: [2]}", "4"}) {
    EXPECT_THAT(usage_error("objective: {hidden_states: {layers: " + std::string(wrong) + "}}\n"),
                HasSubstr("hidden_states.layers: expected layers of student and teacher"))
        << wrong;
  }
}

TEST(Recipe, LearnsHardLabelsFromTextAlone) {
  EXPECT_EQ(read("objective: {other_tokenizer: text}\n").objective.hard_label_weight, 1);
  EXPECT_THAT(usage_error("objective: {other_tokenizer: text, hard_label_weight: 0.5}\n"),
              HasSubstr("objective.hard_label_weight: 0.5 is not in [1, 1]"));
  EXPECT_THAT(usage_error("objective: {other_tokenizer: yes}\n"), HasSubstr("objective.other_tokenizer"));
}

TEST(Recipe, ToleratesAnotherLengthButNoOtherLearningRateInARunContinued) {
  Recipe recipe;
  Recipe other = recipe;
  other.schedule.steps = 5;
  other.checkpoint_every = 1;
  EXPECT_EQ(recipe.difference(other), "");
  other.schedule.peak = 0.5;
  EXPECT_EQ(recipe.difference(other), "optimizer learning_rate: 0.001 against 0.5");
}

}  // namespace
}  // namespace distill
