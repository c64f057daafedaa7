#include "core/error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace distill::core {
namespace {

TEST(Error, CarriesTheContextOfEveryCallerOutermostFirst) {
  try {
    with_context("while reading shard-00012.h5",
                 [] { with_context("document 311", [] { fail("{} bytes short", 4); }); });
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "while reading shard-00012.h5: document 311: 4 bytes short");
  }
}

TEST(Error, KeepsAUsageErrorAUsageErrorUnderContext) {
  EXPECT_THROW(with_context("recipe.yaml:3", [] { fail_usage("unknown key"); }), UsageError);
}

TEST(Error, TakesOnlyTheFirstLineOfAForeignException) {
  try {
    with_context("x.bin", [] { throw std::runtime_error("bad\nat frame 1"); });
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "x.bin: bad");
  }
}

TEST(Nearest, SuggestsTheNearestNameAndNothingWhenAllAreFar) {
  const std::vector<std::string> known{"learning_rate", "warmup_steps", "seed"};
  EXPECT_EQ(nearest("learning_rte", known), "learning_rate");
  EXPECT_EQ(nearest("sed", known), "seed");
  EXPECT_EQ(nearest("zzzzzzzz", known), "");
}

}  // namespace
}  // namespace distill::core
