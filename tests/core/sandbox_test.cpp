#include "core/sandbox.h"

#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "tests/temporary_folder.h"

namespace distill::core {
namespace {

class Sandbox : public testing::Test {
 protected:
  void SetUp() override {
    try {
      run_in_sandbox("true", "");
    } catch (const Error& error) {
      GTEST_SKIP() << "not permitted here: " << error.what();
    }
  }
};

TEST_F(Sandbox, ReportsHowTheCommandEnded) {
  EXPECT_EQ(run_in_sandbox("exit 0", "").exit_code, 0);
  EXPECT_EQ(run_in_sandbox("exit 7", "").exit_code, 7);
  EXPECT_EQ(run_in_sandbox("no-such-command-here", "").exit_code, 127);
  EXPECT_EQ(run_in_sandbox("sh -c 'kill -9 $$'", "").exit_code, 128 + SIGKILL);
}

TEST_F(Sandbox, GivesTheInputToTheCommand) {
  const std::string text(1 << 20, 'x');
  EXPECT_EQ(run_in_sandbox("test $(wc -c) = 1048576", text).exit_code, 0);
  EXPECT_EQ(run_in_sandbox("read line; test \"$line\" = forty-two", "forty-two\n").exit_code, 0);
}

TEST_F(Sandbox, HasNoNetwork) {
  // Only the loopback device, and that is down.
  EXPECT_EQ(run_in_sandbox("test $(grep -c : /proc/self/net/dev) = 1", "").exit_code, 0);
}

TEST_F(Sandbox, WritesNothingButItsOwnTemporaryFiles) {
  const TemporaryFolder folder(TemporaryFolder::memory());
  const std::string file = (folder.path() / "file").string();
  std::ofstream(file) << "kept";
  EXPECT_NE(run_in_sandbox("echo lost > " + file, "").exit_code, 0);
  EXPECT_NE(run_in_sandbox("rm " + file, "").exit_code, 0);
  EXPECT_EQ(run_in_sandbox("test $(cat " + file + ") = kept", "").exit_code, 0);
  EXPECT_EQ(run_in_sandbox("echo x > /tmp/sandbox-test && test -s /tmp/sandbox-test", "").exit_code, 0);
  EXPECT_FALSE(std::filesystem::exists("/tmp/sandbox-test"));
  EXPECT_NE(run_in_sandbox("head -c 2000000 /dev/zero > /tmp/large", "", {.temporary_bytes = 1 << 20}).exit_code, 0);
}

TEST_F(Sandbox, EndsWithAllItsChildrenWhenTheTimeIsUp) {
  const auto start = std::chrono::steady_clock::now();
  const SandboxResult result = run_in_sandbox("setsid sleep 60 & sleep 60", "", {.seconds = 0.3});
  EXPECT_TRUE(result.timed_out);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST_F(Sandbox, LimitsMemory) {
  EXPECT_NE(run_in_sandbox("head -c 300000000 /dev/zero | tail -c 300000000 | wc -c | grep -q 300000000", "",
                           {.memory_bytes = uint64_t{100} << 20})
                .exit_code,
            0);
}

}  // namespace
}  // namespace distill::core
