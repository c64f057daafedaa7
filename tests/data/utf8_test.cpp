#include "data/utf8.h"

#include <gtest/gtest.h>

namespace distill::data::utf8 {
namespace {

TEST(Utf8Repair, LeavesValidTextAlone) {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80 and more than eight ASCII bytes";
  EXPECT_EQ(valid_prefix(text), text.size());
  EXPECT_EQ(replace_invalid(text), text);
}

// Each case as Python's bytes.decode("utf-8", "replace") has it, which equals Rust's String::from_utf8_lossy.
TEST(Utf8Repair, ReplacesMaximalSubpartsAsPythonDoes) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(replace_invalid("a\x80z"), "a" + r + "z");
  EXPECT_EQ(replace_invalid("\xC0\xAF"), r + r);                  // overlong
  EXPECT_EQ(replace_invalid("\xE0\x80\xAF"), r + r + r);          // overlong
  EXPECT_EQ(replace_invalid("\xED\xA0\x80"), r + r + r);          // surrogate
  EXPECT_EQ(replace_invalid("\xF4\x90\x80\x80"), r + r + r + r);  // past U+10FFFF
  EXPECT_EQ(replace_invalid("\xE2\x82x"), r + "x");               // cut off: one for both bytes
  EXPECT_EQ(replace_invalid("\xF0\x9F\x98"), r);
  EXPECT_EQ(replace_invalid("\xF0\x9F\x98\xF0\x9F\x98\x80"), r + "\xF0\x9F\x98\x80");
  EXPECT_EQ(replace_invalid("\xFF\xFE"), r + r);
  EXPECT_EQ(replace_invalid("12345678\xC3"), "12345678" + r);
}

TEST(Utf8Repair, KnowsWhatMayYetBecomeACharacter) {
  EXPECT_EQ(incomplete_suffix(""), 0u);
  EXPECT_EQ(incomplete_suffix("abc"), 0u);
  EXPECT_EQ(incomplete_suffix("\xC3\xA9"), 0u);
  EXPECT_EQ(incomplete_suffix("a\xC3"), 1u);
  EXPECT_EQ(incomplete_suffix("a\xE2\x82"), 2u);
  EXPECT_EQ(incomplete_suffix("a\xF0\x9F\x98"), 3u);
  EXPECT_EQ(incomplete_suffix("\xED\xA0"), 0u);  // no continuation makes this one
  EXPECT_EQ(incomplete_suffix("\xE2\x82\xAC\x80"), 0u);
  EXPECT_EQ(incomplete_suffix("\xFF"), 0u);
}

TEST(Utf8Repair, WritesWhatItReads) {
  for (const char32_t c : {U'a', U'\x7F', U'\x80', U'\x7FF', U'\x800', U'\xFFFD', U'\x10000', U'\x10FFFF'}) {
    std::string text;
    append(text, c);
    const Decoded decoded = decode(reinterpret_cast<const unsigned char*>(text.data()));
    EXPECT_EQ(decoded.code_point, c);
    EXPECT_EQ(decoded.length, text.size());
  }
}

}  // namespace
}  // namespace distill::data::utf8
