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

TEST(Language, IsToldByItsWords) {
  EXPECT_EQ(language("The boiling point of water falls with the pressure of the air around it."), "en");
  EXPECT_EQ(language("Der Siedepunkt des Wassers sinkt mit dem Druck der Luft, die es umgibt."), "de");
  EXPECT_EQ(language("Le point d'ébullition de l'eau baisse avec la pression de l'air."), "fr");
  EXPECT_EQ(language("水的沸点随着周围空气压力的降低而降低。"), "zh");
  EXPECT_EQ(language("Температура кипения воды понижается вместе с давлением воздуха."), "ru");
}

TEST(Language, IsUnknownWhereThereIsNone) {
  EXPECT_EQ(language(""), "");
  EXPECT_EQ(language("42"), "");
  EXPECT_EQ(language("3.14 * (2 + 5) = 21.98"), "");
}

TEST(Language, BearsTextThatIsCutWithinACharacter) {
  const std::string text = "Der Siedepunkt des Wassers sinkt mit dem Druck der Luft, die es umgibt, und wächst";
  EXPECT_EQ(language(text.substr(0, text.find("ä") + 1)), "de");
}

TEST(Language, HasACode) {
  EXPECT_EQ(error_of([] { check_language("en"); }), "");
  EXPECT_THAT(error_of([] { check_language("klingonese"); }), testing::HasSubstr("no language 'klingonese'"));
  EXPECT_THAT(error_of([] { check_language("ENGLISH"); }), testing::HasSubstr("no language 'ENGLISH'"));
}

}  // namespace
}  // namespace distill::data
