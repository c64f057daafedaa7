#include "distill/spike_guard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace distill {
namespace {

using testing::HasSubstr;

TEST(SpikeGuard, SkipsWhatIsNotANumber) {
  SpikeGuard guard({}, true);
  EXPECT_EQ(guard.judge(1, 1), "");
  EXPECT_THAT(guard.judge(NAN, 1), HasSubstr("the loss is nan"));
  EXPECT_THAT(guard.judge(1, INFINITY), HasSubstr("the gradient's length is inf"));
}

TEST(SpikeGuard, SkipsGradientsFarLongerThanUsualOnceItKnowsWhatIsUsual) {
  SpikeGuard guard({.factor = 10}, false);
  EXPECT_EQ(guard.judge(1, 100), "");  // the first steps tell
  for (int i = 0; i < 100; ++i) EXPECT_EQ(guard.judge(1, 1 + 0.1 * (i % 3)), "");
  EXPECT_EQ(guard.judge(1, 5), "");
  EXPECT_THAT(guard.judge(1, 40), HasSubstr("times the usual one"));
  EXPECT_THAT(guard.judge(1, 40), HasSubstr("times the usual one"));  // a skipped one changes nothing
  SpikeGuard numbers_alone({.factor = 0}, true);
  for (int i = 0; i < 100; ++i) numbers_alone.judge(1, 1);
  EXPECT_EQ(numbers_alone.judge(1, 1e9), "");
}

TEST(SpikeGuard, TakesAllButTheFirstLongGradientInARowWhereTheyAreClipped) {
  for (const bool clipped : {false, true}) {
    SpikeGuard guard({.factor = 10, .patience = 3}, clipped);
    for (int i = 0; i < 30; ++i) guard.judge(1, 1);
    EXPECT_FALSE(guard.skips());
    EXPECT_NE(guard.judge(1, 40), "");
    EXPECT_TRUE(guard.skips());
    EXPECT_NE(guard.judge(1, 40), "");
    EXPECT_EQ(guard.skips(), !clipped);
    EXPECT_TRUE(guard.alarmed());
    EXPECT_NE(guard.judge(1, NAN), "");
    EXPECT_TRUE(guard.skips());
    EXPECT_TRUE(guard.exhausted());
    EXPECT_EQ(guard.judge(1, 1), "");
    EXPECT_FALSE(guard.skips());
    EXPECT_FALSE(guard.alarmed());
  }
}

TEST(SpikeGuard, DoubtsTheWeightsAfterMoreThanOneLongGradient) {
  SpikeGuard guard({.factor = 10}, false);
  for (int i = 0; i < 30; ++i) guard.judge(1, 1);
  guard.judge(1, 40);
  EXPECT_TRUE(guard.alarmed());
  EXPECT_FALSE(guard.weights_in_doubt());
  guard.judge(1, 40);
  EXPECT_TRUE(guard.weights_in_doubt());
  guard.judge(1, 1);
  EXPECT_FALSE(guard.weights_in_doubt());
  guard.judge(1, NAN);
  EXPECT_TRUE(guard.weights_in_doubt());
}

TEST(SpikeGuard, GivesUpAfterSomeInARow) {
  SpikeGuard guard({.patience = 2}, true);
  guard.judge(NAN, 1);
  EXPECT_FALSE(guard.exhausted());
  guard.judge(1, 1);
  guard.judge(NAN, 1);
  EXPECT_FALSE(guard.exhausted());
  guard.judge(NAN, 1);
  EXPECT_TRUE(guard.exhausted());
}

TEST(SpikeGuard, GoesOnAsIfNeverInterrupted) {
  SpikeGuard straight({.factor = 3}, true);
  for (int i = 0; i < 30; ++i) straight.judge(1, 1 + i % 2);
  SpikeGuard resumed({.factor = 3}, true);
  resumed.restore(nlohmann::json::parse(straight.to_json().dump()), "guard");
  EXPECT_EQ(resumed.to_json(), straight.to_json());
  EXPECT_EQ(resumed.judge(1, 9), straight.judge(1, 9));
  resumed.restore(nullptr, "guard");
  EXPECT_EQ(resumed.judge(1, 9), "");
}

}  // namespace
}  // namespace distill
