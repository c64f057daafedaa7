#include "core/shared_files.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/text_file.h"

namespace distill::core {
namespace {

TEST(SharedFiles, HoldTheQuickstartsPrompts) {
  size_t prompts = 0;
  for_each_json_line(shared_file("recipes/prompts/quickstart.jsonl"), [&](size_t, auto&&) { ++prompts; });
  EXPECT_GE(prompts, 500U);
}

TEST(SharedFiles, AreNamedWhereOneIsMissing) {
  try {
    shared_file("no/such/file");
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("share/distill/no/such/file"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace distill::core
