#include "distill/task_accuracy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/data/expect_error.h"
#include "tests/distill/tiny_model_folder.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class TaskAccuracyTest : public testing::Test {
 protected:
  std::vector<data::Prompt> prompts(const std::string& lines) const {
    core::write_file_atomically(folder_.path() / "task.jsonl", lines);
    return data::read_prompts(folder_.path() / "task.jsonl");
  }

  TemporaryFolder folder_;
  TextModel model_ = load_text_model(write_model_folder(folder_.path() / "model"), {.compute = at::kFloat});
};

TEST_F(TaskAccuracyTest, CountsWhatTheVerifiersCallCorrect) {
  // A random model: only verifiers that take anything or nothing have a known answer.
  const auto task = prompts(
      "{\"id\": \"a\", \"prompt\": \"one\", \"answer\": \"^\", \"verifier\": \"regex\"}\n"
      "{\"id\": \"b\", \"prompt\": \"two\", \"answer\": \"(?!)\", \"verifier\": \"regex\"}\n"
      "{\"id\": \"c\", \"prompt\": \"three\", \"answer\": \"^\", \"verifier\": \"regex\"}\n");
  const TaskAccuracy result = measure_task(model_, task, {.max_new_tokens = 4, .batch = 2}, nullptr);
  EXPECT_THAT(result.correct, testing::ElementsAre(1, 0, 1));
  EXPECT_DOUBLE_EQ(result.pass(1), 2.0 / 3);
  EXPECT_EQ(result.to_json()["correct"], 2);
  EXPECT_EQ(result.votes, 0);
}

TEST_F(TaskAccuracyTest, CountsSeveralAnswersToAPrompt) {
  const auto task = prompts(
      "{\"id\": \"a\", \"prompt\": \"one\", \"answer\": \"^\", \"verifier\": \"regex\"}\n"
      "{\"id\": \"b\", \"prompt\": \"two\", \"answer\": \"no such answer\", \"verifier\": \"exact\"}\n");
  const TaskAccuracy result =
      measure_task(model_, task, {.max_new_tokens = 4, .batch = 3, .samples = 5, .temperature = 1}, nullptr);
  EXPECT_THAT(result.correct, testing::ElementsAre(5, 0));
  EXPECT_EQ(result.answers(), 10);
  EXPECT_EQ(result.votes, 1);
  EXPECT_EQ(result.correct_votes, 0);
  const auto json = result.to_json();
  EXPECT_EQ(json["pass"].size(), 4);
  EXPECT_DOUBLE_EQ(json["pass"]["5"], 0.5);
  EXPECT_EQ(json["majority"], 0);
}

TEST(TaskAccuracyTotals, EstimateHowOftenSeveralAnswersHoldACorrectOne) {
  TaskAccuracy result;
  result.samples = 4;
  result.correct = {1, 4, 0};
  EXPECT_DOUBLE_EQ(result.pass(1), (0.25 + 1 + 0) / 3);
  EXPECT_DOUBLE_EQ(result.pass(2), (0.5 + 1 + 0) / 3);  // 1 - (3 choose 2) / (4 choose 2)
  EXPECT_DOUBLE_EQ(result.pass(4), 2.0 / 3);
}

TEST_F(TaskAccuracyTest, NamesThePromptThatCannotBeChecked) {
  EXPECT_THAT(error_of([&] { measure_task(model_, prompts("{\"id\": \"a\", \"prompt\": \"one\"}\n"), {}, nullptr); }),
              AllOf(HasSubstr("\"a\" (line 1)"), HasSubstr("\"answer\" and \"verifier\"")));
}

}  // namespace
}  // namespace distill
