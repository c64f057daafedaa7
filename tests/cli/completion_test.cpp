#include "cli/completion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace distill::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

class Completion : public testing::Test {
 protected:
  CLI::App app_{"An application.", "distill"};
  std::string out_, dtype_, shell_;
  bool quiet_ = false;

  void SetUp() override {
    CLI::App* train =
        app_.add_subcommand("train", "Example: distill train --out DIR\n\nTrains, until it's done. Slowly.");
    train->add_option("--out", out_, "Where to [write]: a folder\nSecond line");
    train->add_option("--dtype", dtype_)->check(CLI::IsMember({"fp32", "bf16"}));
    train->add_flag("--quiet,-q", quiet_);
    CLI::App* completion = app_.add_subcommand("completion", "Completes");
    completion->add_option("shell", shell_)->check(CLI::IsMember({"bash", "zsh"}));
  }
};

TEST_F(Completion, SummarisesACommandByTheFirstSentenceBehindItsExample) {
  EXPECT_EQ(summary_of(*app_.get_subcommand("train")), "Trains, until it's done");
  EXPECT_EQ(summary_of(*app_.get_subcommand("completion")), "Completes");
  EXPECT_EQ(summary_of(app_), "An application");
}

TEST_F(Completion, OffersCommandsOptionsAndAllowedWordsInBash) {
  const std::string script = completion_script(app_, "bash");
  EXPECT_THAT(script, HasSubstr("'') words='train completion -h --help' ;;"));
  EXPECT_THAT(script, HasSubstr("'train') words='-h --help --out --dtype -q --quiet' ;;"));
  EXPECT_THAT(script, HasSubstr("'train --dtype') COMPREPLY=($(compgen -W 'fp32 bf16' -- \"$current\")); return ;;"));
  EXPECT_THAT(script, HasSubstr("'completion') words='bash zsh -h --help' ;;"));
  EXPECT_THAT(script, Not(HasSubstr("'train --quiet')"))) << "a flag takes no value";
}

TEST_F(Completion, QuotesDescriptionsInZshAndFish) {
  EXPECT_THAT(completion_script(app_, "zsh"), HasSubstr(R"('--out[Where to \[write\]\: a folder]:value:_files')"));
  EXPECT_THAT(completion_script(app_, "zsh"), HasSubstr(R"('train:Trains, until it'\''s done')"));
  EXPECT_THAT(completion_script(app_, "fish"), HasSubstr(R"(-a train -d 'Trains, until it'\''s done')"));
  EXPECT_THAT(completion_script(app_, "fish"),
              HasSubstr("complete -c distill -n '__fish_seen_subcommand_from train' -l dtype -r -f -a 'fp32 bf16'"));
}

TEST_F(Completion, RefusesAShellItDoesNotKnow) {
  EXPECT_THROW(completion_script(app_, "tcsh"), core::UsageError);
}

}  // namespace
}  // namespace distill::cli
