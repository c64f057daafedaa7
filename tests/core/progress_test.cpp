#include "core/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distill::core {
namespace {

TEST(Progress, FormatsDurationsCountsAndBytes) {
  EXPECT_EQ(format_duration(12.4), "12s");
  EXPECT_EQ(format_duration(190), "3m10s");
  EXPECT_EQ(format_duration(3725), "1h02m");
  EXPECT_EQ(format_count(812), "812");
  EXPECT_EQ(format_count(12345), "12.3k");
  EXPECT_EQ(format_count(999999), "1.00M");
  EXPECT_EQ(format_bytes(4.56e6), "4.56 MB");
}

TEST(Progress, PrintsAPlainLineWithRateWhereThereIsNoTerminal) {
  testing::internal::CaptureStderr();
  {
    Progress progress("training", 20, "steps", 10);
    progress.set_note("loss 2.31");
    progress.advance(10);
  }
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::MatchesRegex("training 20/20 steps \\(100 %\\), .*/s, took 0s, loss 2.31\n"));
}

}  // namespace
}  // namespace distill::core
