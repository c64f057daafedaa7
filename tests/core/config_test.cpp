#include "core/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "core/error.h"

namespace distill::core {
namespace {

using testing::HasSubstr;

template <typename Body>
std::string usage_error(Body&& body) {
  try {
    body();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

ConfigReader read(const std::string& yaml) {
  return {parse_yaml(yaml), "recipe.yaml"};
}

TEST(Config, ReadsTypedValuesAndFallsBackWhereAKeyIsMissing) {
  auto config = read("learning_rate: 3e-4\nsteps: 100\nname: '7'\nlayers: [0, 4, 8]\n");
  EXPECT_DOUBLE_EQ(config.get<double>("learning_rate", 1.0), 3e-4);
  EXPECT_EQ(config.require<int64_t>("steps"), 100);
  EXPECT_EQ(config.require<std::string>("name"), "7");
  EXPECT_THAT(config.require<std::vector<int64_t>>("layers"), testing::ElementsAre(0, 4, 8));
  EXPECT_TRUE(config.get<bool>("packing", true));
  config.finish();
}

TEST(Config, SuggestsTheNearestKeyForAnUnknownOne) {
  auto config = read("schedule:\n  warmup_step: 10\n");
  auto schedule = config.section("schedule");
  schedule.get<int64_t>("warmup_steps", 0);
  EXPECT_EQ(usage_error([&] { schedule.finish(); }),
            "recipe.yaml: schedule.warmup_step: unknown key, did you mean \"warmup_steps\"?");
}

TEST(Config, SaysWhichTypeAKeyMustHave) {
  auto config = read("learning_rate: fast\n");
  EXPECT_EQ(usage_error([&] { config.get<double>("learning_rate", 1.0); }),
            "recipe.yaml: learning_rate: expected a number, found \"fast\"");
  EXPECT_THAT(usage_error([&] { config.require<int64_t>("steps"); }), HasSubstr("steps: is missing"));
}

TEST(Config, NamesTheLineOfBadYaml) {
  EXPECT_THAT([] { parse_yaml("a: 1\nb: [1, 2\n"); }, testing::ThrowsMessage<Error>(HasSubstr("line 3")));
  EXPECT_THAT([] { parse_yaml("a: 1\na: 2\n"); }, testing::ThrowsMessage<Error>(HasSubstr("line 2: duplicate key")));
}

TEST(Config, RefusesYamlNestedWithoutEnd) {
  EXPECT_THROW(parse_yaml(std::string(1000, '[') + std::string(1000, ']')), Error);
}

}  // namespace
}  // namespace distill::core
