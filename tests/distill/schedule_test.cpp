#include "distill/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace distill {
namespace {

TEST(Schedule, RisesToThePeakInEqualSteps) {
  const Schedule schedule{.peak = 2.0, .warmup_steps = 4, .steps = 100};
  EXPECT_DOUBLE_EQ(schedule.rate(1), 0.5);
  EXPECT_DOUBLE_EQ(schedule.rate(2), 1.0);
  EXPECT_DOUBLE_EQ(schedule.rate(4), 2.0);
}

TEST(Schedule, EveryShapeEndsAtTheFloorButTheConstantOne) {
  for (const auto shape : {ScheduleShape::kCosine, ScheduleShape::kWsd, ScheduleShape::kLinear}) {
    const Schedule schedule{.shape = shape, .peak = 2.0, .floor = 0.25, .warmup_steps = 10, .steps = 100};
    EXPECT_DOUBLE_EQ(schedule.rate(100), 0.5) << to_string(shape);
    EXPECT_DOUBLE_EQ(schedule.rate(10), 2.0) << to_string(shape);
    for (int64_t step = 11; step <= 100; ++step) EXPECT_LE(schedule.rate(step), schedule.rate(step - 1));
  }
  const Schedule constant{.shape = ScheduleShape::kConstant, .peak = 2.0, .warmup_steps = 10, .steps = 100};
  EXPECT_DOUBLE_EQ(constant.rate(100), 2.0);
}

TEST(Schedule, CosineIsHalfwayDownInTheMiddle) {
  const Schedule schedule{.peak = 1.0, .floor = 0.0, .warmup_steps = 0, .steps = 100};
  EXPECT_NEAR(schedule.rate(50), 0.5, 1e-12);
}

TEST(Schedule, WsdStaysAtThePeakUntilItsDecay) {
  const Schedule schedule{
      .shape = ScheduleShape::kWsd, .peak = 1.0, .floor = 0.0, .decay_share = 0.2, .warmup_steps = 5, .steps = 100};
  EXPECT_DOUBLE_EQ(schedule.rate(80), 1.0);
  EXPECT_DOUBLE_EQ(schedule.rate(85), 0.5);  // 1 - sqrt(1/4)
}

TEST(Schedule, WsdStaysAtThePeakWhereItsDecayHasNoStep) {
  const Schedule never{
      .shape = ScheduleShape::kWsd, .peak = 1.0, .floor = 0.1, .decay_share = 0, .warmup_steps = 5, .steps = 100};
  for (int64_t step = 5; step <= 100; ++step) EXPECT_DOUBLE_EQ(never.rate(step), 1.0) << step;
  for (const int64_t steps : {1, 2}) {
    const Schedule brief{.shape = ScheduleShape::kWsd, .decay_share = 0.2, .warmup_steps = 0, .steps = steps};
    EXPECT_DOUBLE_EQ(brief.rate(1), brief.peak);
    EXPECT_DOUBLE_EQ(brief.rate(steps), brief.peak);
  }
}

TEST(Schedule, AVeryShortRunEndsAtTheFloor) {
  for (const auto shape : {ScheduleShape::kCosine, ScheduleShape::kWsd, ScheduleShape::kLinear}) {
    for (const int64_t steps : {1, 2}) {
      const Schedule brief{
          .shape = shape, .peak = 1, .floor = 0.1, .decay_share = 1, .warmup_steps = 0, .steps = steps};
      EXPECT_DOUBLE_EQ(brief.rate(steps), 0.1) << to_string(shape) << ' ' << steps;
    }
  }
}

TEST(Schedule, SurvivesAWarmUpLongerThanTheRun) {
  const Schedule schedule{.peak = 1.0, .warmup_steps = 50, .steps = 10};
  EXPECT_DOUBLE_EQ(schedule.rate(10), 1.0);
}

TEST(Schedule, ListsTheShapesForAnUnknownOne) {
  EXPECT_THAT([] { parse_schedule("cosin"); },
              testing::ThrowsMessage<core::UsageError>("schedule 'cosin' is none of cosine, wsd, linear, constant"));
}

}  // namespace
}  // namespace distill
