#include "data/verification_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/error.h"
#include "core/sandbox.h"
#include "tests/data/expect_error.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class VerificationQueueTest : public testing::Test {
 protected:
  static Prompt prompt(std::string verifier, std::string answer) {
    return {.id = "p", .text = "?", .answer = std::move(answer), .verifier = std::move(verifier)};
  }
  static bool may_run_programs() {
    try {
      core::run_in_sandbox("true", "");
      return true;
    } catch (const core::Error&) {
      return false;
    }
  }
  VerificationQueue::Done note(int number) {
    return [this, number](Verdict verdict) { verdicts_.emplace_back(number, verdict); };
  }
  std::vector<std::pair<int, Verdict>> verdicts_;
};

TEST_F(VerificationQueueTest, HandsOnAtOnceWhatTakesNoProgram) {
  VerificationQueue queue;
  const Prompt exact = prompt("exact", "yes"), none{.id = "p", .text = "?"};
  queue.add(exact, "yes", note(1));
  queue.add(exact, "no", note(2));
  queue.add(none, "maybe", note(3));
  EXPECT_THAT(verdicts_, ElementsAre(std::pair(1, Verdict::kCorrect), std::pair(2, Verdict::kIncorrect),
                                     std::pair(3, Verdict::kUnchecked)));
}

// The first program ends only when a file appears that is written after everything was added: had add() waited for it,
// it would have been stopped as too slow, and be incorrect.
TEST_F(VerificationQueueTest, RunsProgramsBesideTheCallerAndKeepsTheOrder) {
  if (!may_run_programs()) GTEST_SKIP() << "sandboxes are not permitted here";
  const TemporaryFolder folder(TemporaryFolder::memory());
  if (folder.path().string().starts_with("/tmp")) GTEST_SKIP() << "a sandbox does not see /tmp";
  const auto flag = folder.path() / "flag";
  const Prompt slow = prompt("program", "until [ -e " + flag.string() + " ]; do sleep 0.01; done"),
               fast = prompt("program", "grep -q 42"), exact = prompt("exact", "42");
  VerificationQueue queue(2);
  queue.add(slow, "", note(1));
  queue.add(fast, "41", note(2));
  queue.add(exact, "42", note(3));
  queue.add(fast, "42", note(4));
  EXPECT_THAT(verdicts_, ElementsAre());
  std::ofstream(flag).close();
  queue.finish();
  EXPECT_THAT(verdicts_, ElementsAre(std::pair(1, Verdict::kCorrect), std::pair(2, Verdict::kIncorrect),
                                     std::pair(3, Verdict::kCorrect), std::pair(4, Verdict::kCorrect)));
}

TEST_F(VerificationQueueTest, HoldsNoMoreThanFourAnswersPerThread) {
  if (!may_run_programs()) GTEST_SKIP() << "sandboxes are not permitted here";
  VerificationQueue queue(1);
  const Prompt program = prompt("program", "grep -q 1");
  for (int i = 0; i < 12; ++i) {
    queue.add(program, std::to_string(i), note(i));
    EXPECT_LE(i + 1 - static_cast<int>(verdicts_.size()), 4);
  }
  queue.finish();
  ASSERT_EQ(verdicts_.size(), 12u);
  for (int i = 0; i < 12; ++i) {
    EXPECT_EQ(verdicts_[i], std::pair(i, i == 1 || i >= 10 ? Verdict::kCorrect : Verdict::kIncorrect));
  }
}

TEST_F(VerificationQueueTest, ThrowsWhenItIsTheTurnOfTheAnswerThatFailed) {
  VerificationQueue queue;
  const Prompt broken = prompt("regex", "a(");
  EXPECT_THAT(error_of([&] { queue.add(broken, "a", note(1)); }), HasSubstr("prompt \"p\""));
  EXPECT_TRUE(verdicts_.empty());
}

}  // namespace
}  // namespace distill::data
