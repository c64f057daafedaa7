#include "data/verifier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "core/sandbox.h"
#include "data/math_answer.h"
#include "tests/data/expect_error.h"

namespace distill::data {
namespace {

using testing::HasSubstr;

bool correct(std::string_view verifier, std::string_view answer, std::string_view completion) {
  return verify(verifier, answer, completion) == Verdict::kCorrect;
}

TEST(Verifier, ExactIgnoresOnlySpaceAround) {
  EXPECT_TRUE(correct("exact", "Paris", " Paris\n"));
  EXPECT_FALSE(correct("exact", "Paris", "Paris."));
  EXPECT_FALSE(correct("exact", "Paris", "paris"));
  EXPECT_FALSE(correct("exact", "Paris", ""));
}

TEST(Verifier, CountsOnlyWhatFollowsTheThoughts) {
  EXPECT_TRUE(correct("exact", "4", "<think>5? no</think>\n4"));
  EXPECT_FALSE(correct("numeric", "5", "<think>it is 5</think>\n4"));
  EXPECT_FALSE(correct("numeric", "5", "<think>it is 5"));
  EXPECT_TRUE(correct("numeric", "5", "thoughts without a beginning</think> 5"));
}

TEST(Verifier, NumericFindsTheFinalNumber) {
  EXPECT_TRUE(correct("numeric", "42", "First 7, then 35, so 42."));
  EXPECT_TRUE(correct("numeric", "1234.5", "That makes $1,234.50."));
  EXPECT_TRUE(correct("numeric", "1,234", "#### 1234\nI used 3 steps."));
  EXPECT_TRUE(correct("numeric", "-0.5", "x = -.5"));
  EXPECT_TRUE(correct("numeric", "50", "It is 50%."));
  EXPECT_TRUE(correct("numeric", "0.5", "\\boxed{\\frac{1}{2}} which took 3 lines"));
  EXPECT_TRUE(correct("numeric", "1e3", "1000"));
  EXPECT_FALSE(correct("numeric", "42", "42 or rather 43"));
  EXPECT_FALSE(correct("numeric", "42", "no idea"));
  EXPECT_FALSE(correct("numeric", "42", "420"));
  EXPECT_THAT(error_of([] { check_verifier("numeric", "many"); }), HasSubstr("'many' is no number"));
}

TEST(Verifier, ChoiceFindsTheLetter) {
  EXPECT_TRUE(correct("choice", "B", "The answer is (B)."));
  EXPECT_TRUE(correct("choice", "B", "Answer: B"));
  EXPECT_TRUE(correct("choice", "(b)", "The correct answer is **B**"));
  EXPECT_TRUE(correct("choice", "C", "B. is wrong because I think so, hence \\boxed{C}"));
  EXPECT_TRUE(correct("choice", "A", "A) because it is"));
  EXPECT_TRUE(correct("choice", "D", "Not (A), but (D)."));
  EXPECT_TRUE(correct("choice", "C", "Reasoning first.\nC"));
  EXPECT_FALSE(correct("choice", "A", "I have read A book"));
  EXPECT_FALSE(correct("choice", "A", "The answer is Apple"));
  EXPECT_FALSE(correct("choice", "B", "The answer is (C)."));
  EXPECT_THAT(error_of([] { check_verifier("choice", "both"); }), HasSubstr("no single letter"));
}

TEST(Verifier, MathComparesValuesAndExpressions) {
  EXPECT_TRUE(correct("math", "\\frac{1}{2}", "so \\boxed{0.5}"));
  EXPECT_TRUE(correct("math", "1/2", "thus $\\boxed{\\dfrac12}$."));
  EXPECT_TRUE(correct("math", "-3/4", "\\boxed{-\\frac{3}{4}}"));
  EXPECT_TRUE(correct("math", "10000", "\\boxed{10{,}000}"));
  EXPECT_TRUE(correct("math", "x^2+1", "\\boxed{ x^2 + 1 }"));
  EXPECT_TRUE(correct("math", "\\frac{\\sqrt{3}}{2}", "\\boxed{\\tfrac{\\sqrt{3}}{2}}"));
  EXPECT_TRUE(correct("math", "5", "\\boxed{1} is wrong, it is \\boxed{5\\text{ cm}}"));
  EXPECT_TRUE(correct("math", "\\boxed{7}", "The answer is $7$."));
  EXPECT_TRUE(correct("math", "5", "The final answer is: $x = 5$"));
  EXPECT_TRUE(correct("math", "12", "I count 12"));
  EXPECT_TRUE(correct("math", "50\\%", "\\boxed{\\frac{1}{2}}"));
  EXPECT_TRUE(correct("math", "\\text{even}", "\\boxed{\\text{even}}"));
  EXPECT_FALSE(correct("math", "1/2", "\\boxed{1/3}"));
  EXPECT_FALSE(correct("math", "5", "5 but \\boxed{6}"));
  EXPECT_FALSE(correct("math", "x^2", "\\boxed{x^3}"));
  EXPECT_FALSE(correct("math", "5", ""));
}

TEST(Verifier, MathSurvivesBrokenLatex) {
  for (const char* text :
       {"\\boxed{", "\\boxed{1", "\\boxed", "\\frac", "\\boxed{\\frac}", "\\boxed{\\frac{1}}", "\\boxed{\\frac{1}{0}}",
        "\\boxed{}}", "\\text{", "\\boxed{\\frac{1}{2}{3}}", "}{}{", "$$", "\\boxed{1/}"}) {
    EXPECT_FALSE(correct("math", "7", text)) << text;
  }
  EXPECT_EQ(last_boxed("\\boxed{a{b}c} \\boxed{d"), "a{b}c");
}

TEST(Verifier, RegexSearches) {
  EXPECT_TRUE(correct("regex", "^def \\w+\\(", "def add(a, b):"));
  EXPECT_FALSE(correct("regex", "^def", "x = def"));
  EXPECT_TRUE(correct("regex", "b",
                      "a\xff"
                      "b"));
  EXPECT_TRUE(correct("regex", "(?i)größe", "GRÖSSE oder Größe"));
  EXPECT_THAT(error_of([] { check_verifier("regex", "a("); }), HasSubstr("the pattern 'a(' is wrong at character 2"));
}

TEST(Verifier, RegexGivesUpOnPatternsThatTakeForever) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(correct("regex", "^(a|aa|aaa)+$", std::string(5000, 'a') + "b"));
  EXPECT_FALSE(correct("regex", "^(([a-z])+.)+[A-Z]([a-z])+$", std::string(5000, 'a')));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(Verifier, ProgramsJudgeByTheirExitCode) {
  try {
    core::run_in_sandbox("true", "");
  } catch (const core::Error& error) {
    GTEST_SKIP() << "not permitted here: " << error.what();
  }
  EXPECT_EQ(verify("program", "grep -q 42", "<think>41</think>It is 42."), Verdict::kCorrect);
  EXPECT_EQ(verify("program", "grep -q 41", "<think>41</think>It is 42."), Verdict::kIncorrect);
  EXPECT_EQ(verify("program", "kill -9 $$; exit 3", "x"), Verdict::kIncorrect);
  EXPECT_EQ(verify("program", "no-such-command-here", "x"), Verdict::kIncorrect);
  EXPECT_THAT(error_of([] { check_verifier("program", " "); }), HasSubstr("names no command"));
}

TEST(Verifier, ExtractsAnswersThatCanBeCounted) {
  EXPECT_EQ(extract_answer("numeric", "so 1,200.0"), extract_answer("numeric", "It is \\boxed{1200}"));
  EXPECT_EQ(extract_answer("math", "x = \\frac{1}{2}, so the answer is $\\frac{1}{2}$"),
            extract_answer("math", "\\boxed{0.5}"));
  EXPECT_NE(extract_answer("math", "\\boxed{x+1}"), extract_answer("math", "\\boxed{x+2}"));
  EXPECT_EQ(extract_answer("choice", "The answer is (b)."), "B");
  EXPECT_EQ(extract_answer("exact", " yes\n"), "yes");
  EXPECT_EQ(extract_answer("numeric", "none"), std::nullopt);
  EXPECT_EQ(extract_answer("numeric", "<think>5"), std::nullopt);
  EXPECT_EQ(extract_answer("regex", "5"), std::nullopt);
}

TEST(Verifier, NamesTheOnesThereAre) {
  EXPECT_THAT(error_of([] { verify("guess", "1", "1"); }), HasSubstr("exact, numeric, choice, math, regex"));
}

}  // namespace
}  // namespace distill::data
