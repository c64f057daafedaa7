#include "core/subprocess.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace distill::core {
namespace {

TEST(Subprocess, CollectsOutputAndExitCode) {
  const auto result = run_subprocess({"sh", "-c", "printf 'one two'; exit 3"});
  EXPECT_EQ(result.standard_output, "one two");
  EXPECT_EQ(result.exit_code, 3);
}

TEST(Subprocess, ReportsTheSignalThatEndedIt) {
  EXPECT_EQ(run_subprocess({"sh", "-c", "kill -9 $$"}).exit_code, 128 + 9);
}

TEST(Subprocess, NamesAProgramThatDoesNotExist) {
  EXPECT_THROW(run_subprocess({"no-such-program-here"}), Error);
}

}  // namespace
}  // namespace distill::core
