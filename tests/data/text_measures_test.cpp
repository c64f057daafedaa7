#include "data/text_measures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/data/expect_error.h"

namespace distill::data {
namespace {

TEST(Repetition, IsTheShareOfRunsThatCameBefore) {
  EXPECT_EQ(repetition(std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 8}), 0);
  EXPECT_EQ(repetition(std::vector<int32_t>{1, 1, 1, 1}), 0);
  EXPECT_EQ(repetition(std::vector<int32_t>{1, 1, 1, 1, 1}), 0.5);
  EXPECT_GT(repetition(std::vector<int32_t>(100, 7)), 0.98);
}

TEST(ScriptShare, CountsLettersOnly) {
  EXPECT_EQ(script_share("Grüße, 123!", "Latin"), 1);
  EXPECT_EQ(script_share("да yes", "Cyrillic"), 0.4);
  EXPECT_EQ(script_share("漢字", "Han"), 1);
  EXPECT_EQ(script_share("漢字", "Latin"), 0);
  EXPECT_EQ(script_share("1 + 1 = 2", "Latin"), 1);
  EXPECT_EQ(script_share("a\xff\xfe b", "Latin"), 1);
  EXPECT_THAT(error_of([] { script_share("x", "Klingon"); }), testing::HasSubstr("no script 'Klingon'"));
}

}  // namespace
}  // namespace distill::data
