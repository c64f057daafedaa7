#include "nn/stop_strings.h"

#include <gtest/gtest.h>

namespace distill::nn {
namespace {

// Pushes `text` in pieces of `size` bytes; returns what was shown.
std::string run(const std::vector<std::string>& stops, const std::string& text, size_t size, bool& matched) {
  StopStrings strings(stops);
  std::string shown;
  for (size_t i = 0; i < text.size() && !strings.matched(); i += size) shown += strings.push(text.substr(i, size));
  matched = strings.matched();
  return shown + strings.finish();
}

TEST(StopStrings, CutTheTextAtTheFirstMatchHoweverItIsCutIntoPieces) {
  for (size_t size = 1; size < 20; ++size) {
    bool matched = false;
    EXPECT_EQ(run({"END", "stop"}, "some text st E stop and END", size, matched), "some text st E ") << size;
    EXPECT_TRUE(matched);
    EXPECT_EQ(run({"aab"}, "aaaaab", size, matched), "aaa") << size;
    EXPECT_TRUE(matched);
    EXPECT_EQ(run({"bc", "abc"}, "xabcd", size, matched), "x") << size;
    EXPECT_EQ(run({"bc", "abcd"}, "xabcd", size, matched), "xa") << size;
  }
}

TEST(StopStrings, ShowEverythingWithoutAMatch) {
  for (size_t size = 1; size < 12; ++size) {
    bool matched = true;
    EXPECT_EQ(run({"stop", ""}, "sto sto sst", size, matched), "sto sto sst");
    EXPECT_FALSE(matched);
    EXPECT_EQ(run({}, "anything", size, matched), "anything");
  }
}

TEST(StopStrings, HoldBackOnlyWhatMayBecomeAMatch) {
  StopStrings strings({"</answer>"});
  EXPECT_EQ(strings.push("42 </ans"), "42 ");
  EXPECT_EQ(strings.push("x"), "</ansx");
  EXPECT_EQ(strings.push("<"), "");
  EXPECT_EQ(strings.push("/answer> more"), "");
  EXPECT_TRUE(strings.matched());
  EXPECT_EQ(strings.push("more"), "");
  EXPECT_EQ(strings.finish(), "");
}

}  // namespace
}  // namespace distill::nn
