#include "data/split_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "core/error.h"
#include "data/utf8.h"

namespace distill::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::vector<std::string> pieces(const SplitPattern& pattern, std::string_view text) {
  std::vector<Segment> segments;
  pattern.find(text, segments);
  std::vector<std::string> result;
  for (const auto& [begin, end, matched] : segments) {
    result.push_back((matched ? "" : "!") + std::string(text.substr(begin, end - begin)));
  }
  return result;
}

TEST(SplitPattern, CutsAsGpt2Does) {
  const auto pattern = SplitPattern::regex(std::string(kGpt2Pattern));
  EXPECT_THAT(pieces(*pattern, "I'm 12 years   old!\n\nOK "),
              ElementsAre("I", "'m", " 12", " years", "  ", " old", "!", "\n", "\n", "OK", " "));
}

TEST(SplitPattern, CutsAsLlama3Does) {
  const auto pattern = SplitPattern::regex(std::string(kLlama3Pattern));
  EXPECT_THAT(pieces(*pattern, "I'M 12345 a.b!!\n\n  \n  x"),
              ElementsAre("I", "'M", " ", "123", "45", " a", ".b", "!!\n\n", "  \n", " ", " x"));
}

TEST(SplitPattern, LeavesGapsWhereDeepSeekDoes) {
  const auto pattern = SplitPattern::regex(std::string(kDeepSeekNumberPattern));
  EXPECT_THAT(pieces(*pattern, "a1234b"), ElementsAre("!a", "123", "4", "!b"));
}

TEST(SplitPattern, ReadsLineBreaksInAPatternInBothSpellings) {
  std::string source(kDeepSeekWordPattern);
  for (size_t at = source.find("\\r\\n"); at != std::string::npos; at = source.find("\\r\\n", at)) {
    source.replace(at, 4, "\r\n");
  }
  EXPECT_NE(find_known_pattern(source), nullptr);
  EXPECT_EQ(SplitPattern::regex(source)->source(), kDeepSeekWordPattern);
}

// Characters on which the patterns' alternatives meet.
std::string random_text(std::mt19937& random) {
  static constexpr char32_t kCharacters[] = {
      U'a',          U'Z',          U's',      U'S',      U't',      U'l',      U'v',      U'e',
      U'r',          U'\'',         U'\'',     U' ',      U' ',      U'\n',     U'\r',     U'\t',
      U'1',          U'9',          U'.',      U'-',      U'é',      U'ſ',      U'\u0301', U'字',
      U'あ',         U'٣',          U'\u00A0', U'\u3000', U'\u180E', U'\u0085', U'\u200B', U'\U0001F600',
      U'\U00011F41', U'\U000323AF', U'\u0378', U'\x01',   U'€',      U'\x1C'};
  std::string text;
  for (int i = static_cast<int>(random() % 24); i >= 0; --i) {
    utf8::append(text, kCharacters[random() % std::size(kCharacters)]);
  }
  return text;
}

TEST(SplitPattern, HandWrittenMatchersAgreeWithTheRegularExpressions) {
  std::mt19937 random(3);
  for (const std::string_view source : {kGpt2Pattern, kLlama3Pattern, kQwen2Pattern, kDeepSeekNumberPattern,
                                        kDeepSeekCjkPattern, kDeepSeekWordPattern}) {
    const auto known = find_known_pattern(source);
    const auto compiled = make_pcre_pattern(std::string(source));
    ASSERT_NE(known, nullptr);
    for (int i = 0; i < 4000; ++i) {
      const std::string text = random_text(random);
      ASSERT_EQ(pieces(*known, text), pieces(*compiled, text)) << source << " on " << testing::PrintToString(text);
    }
  }
}

TEST(SplitPattern, TakesLiteralsAsTheyAre) {
  EXPECT_THAT(pieces(*SplitPattern::literal(".*"), "a.*.*b."), ElementsAre("!a", ".*", ".*", "!b."));
}

TEST(SplitPattern, SkipsEmptyMatchesRightAfterAMatch) {
  EXPECT_THAT(pieces(*SplitPattern::regex("x*"), "axb"), ElementsAre("", "!a", "x", "!b", ""));
}

TEST(SplitPattern, RefusesWhatPcreReadsDifferently) {
  for (const char* source : {R"(\w+)", R"(\bx)", R"([a[b]])", "[a-z&&[^b]]", "(?m:.)", "a{,3}", "a{1,2}+", R"(\h)"}) {
    EXPECT_THAT([&] { SplitPattern::regex(source); }, ThrowsMessage<core::Error>(HasSubstr("is not supported")))
        << source;
  }
  EXPECT_THAT([] { SplitPattern::regex("a(b"); }, ThrowsMessage<core::Error>(HasSubstr("'a(b': missing closing")));
}

TEST(SplitPattern, GivesUpOnCatastrophicBacktrackingWithAnError) {
  const auto pattern = SplitPattern::regex("(?:a+)+(?!.)");
  std::vector<Segment> segments;
  EXPECT_THAT([&] { pattern->find(std::string(60, 'a') + "c", segments); },
              ThrowsMessage<core::Error>(HasSubstr("failed at byte 0 of 61")));
}

}  // namespace
}  // namespace distill::data
