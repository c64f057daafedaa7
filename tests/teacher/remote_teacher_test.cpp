#include "teacher/remote_teacher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include "core/error.h"

namespace distill::teacher {
namespace {

TEST(RetryPolicy, DoublesTheWaitUpToALimitAndSpreadsIt) {
  const RetryPolicy policy{.retries = 8, .first_seconds = 0.5, .longest_seconds = 60};
  EXPECT_DOUBLE_EQ(policy.delay(0, std::nullopt, 0), 0.25);
  EXPECT_DOUBLE_EQ(policy.delay(0, std::nullopt, 0.5), 0.375);
  EXPECT_DOUBLE_EQ(policy.delay(3, std::nullopt, 0), 2);
  EXPECT_DOUBLE_EQ(policy.delay(10, std::nullopt, 0), 30);
  EXPECT_DOUBLE_EQ(policy.delay(1000, std::nullopt, 0), 30);
}

TEST(RetryPolicy, NeverComesBackBeforeTheServerSaid) {
  const RetryPolicy policy{};
  EXPECT_DOUBLE_EQ(policy.delay(0, 20.0, 0), 20);
  EXPECT_DOUBLE_EQ(policy.delay(0, 20.0, 0.5), 21);
  EXPECT_DOUBLE_EQ(policy.delay(10, 1.0, 0), 30);
}

TEST(ApiKey, ComesFromTheEnvironmentOurOwnNameFirst) {
  ::setenv("OPENAI_API_KEY", "theirs", 1);
  EXPECT_EQ(api_key_from_environment(), "theirs");
  ::setenv("DISTILL_API_KEY", "ours", 1);
  EXPECT_EQ(api_key_from_environment(), "ours");
  ::setenv("DISTILL_API_KEY", "two\r\nHost: lines", 1);
  EXPECT_THROW(api_key_from_environment(), core::UsageError);
  ::unsetenv("DISTILL_API_KEY");
  ::unsetenv("OPENAI_API_KEY");
  EXPECT_EQ(api_key_from_environment(), "");
}

}  // namespace
}  // namespace distill::teacher
