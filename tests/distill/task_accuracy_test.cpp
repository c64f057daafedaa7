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
  EXPECT_EQ(result.prompts, 3u);
  EXPECT_THAT(result.verdicts, testing::ElementsAre(true, false, true));
  EXPECT_DOUBLE_EQ(result.accuracy(), 2.0 / 3);
  EXPECT_EQ(result.to_json()["correct"], 2);
}

TEST_F(TaskAccuracyTest, NamesThePromptThatCannotBeChecked) {
  EXPECT_THAT(error_of([&] { measure_task(model_, prompts("{\"id\": \"a\", \"prompt\": \"one\"}\n"), {}, nullptr); }),
              AllOf(HasSubstr("\"a\" (line 1)"), HasSubstr("\"answer\" and \"verifier\"")));
}

}  // namespace
}  // namespace distill
