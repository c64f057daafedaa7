#include "core/text_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "core/atomic_file.h"
#include "core/error.h"
#include "tests/temporary_folder.h"

namespace distill::core {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

class TextFile : public testing::Test {
 protected:
  std::filesystem::path write(std::string_view contents) {
    const auto path = folder_.path() / "data.jsonl";
    write_file_atomically(path, contents);
    return path;
  }
  TemporaryFolder folder_;
};

TEST_F(TextFile, NumbersLinesFromOneAndSkipsBlankOnes) {
  std::vector<size_t> numbers;
  for_each_json_line(write("1\n\n  \r\n2\n3"), [&](size_t number, nlohmann::json&&) { numbers.push_back(number); });
  EXPECT_THAT(numbers, testing::ElementsAre(1, 4, 5));
}

TEST_F(TextFile, NamesFileAndLineOfADefect) {
  const auto ignore = [](size_t, nlohmann::json&&) {};
  EXPECT_THAT([&] { for_each_json_line(write("{}\n{\"a\": }\n"), ignore); },
              ThrowsMessage<Error>(HasSubstr("data.jsonl:2: parse error")));
  EXPECT_THAT([&] { for_each_json_line(write("{}\n\"\xff\"\n"), ignore); },
              ThrowsMessage<Error>(HasSubstr("data.jsonl:2: not valid UTF-8 at byte 1")));
  EXPECT_THAT([&] { for_each_json_line(write(R"({"a": 1, "a": 2})"), ignore); },
              ThrowsMessage<Error>(HasSubstr("data.jsonl:1: duplicate key \"a\"")));
}

TEST(Json, IsRefusedWhereItIsNestedTooDeeply) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_EQ(parse_json(nested(64)).dump(), nested(64));
  for (const size_t depth : {size_t{65}, size_t{500000}}) {
    EXPECT_THAT([&] { parse_json(nested(depth)); }, ThrowsMessage<Error>("nested deeper than 64 levels"));
    EXPECT_THAT([&] { parse_json(R"({"a": )" + nested(depth - 1)); },
                ThrowsMessage<Error>("nested deeper than 64 levels"));
  }
}

TEST(Json, KeepsTheLastOfEqualKeysWhereThatIsAskedFor) {
  EXPECT_EQ(parse_json(R"({"a": 1, "a": 2})", DuplicateKeys::kTakeLast), nlohmann::json({{"a", 2}}));
}

TEST_F(TextFile, NamesAMissingFileAndAFolder) {
  EXPECT_THAT([&] { read_file(folder_.path() / "none"); }, ThrowsMessage<Error>(HasSubstr("none: No such file")));
  EXPECT_THAT([&] { read_file(folder_.path()); }, ThrowsMessage<Error>(HasSubstr("it is a folder")));
}

TEST(Utf8, IsRefusedWhereUnicodeRefusesIt) {
  EXPECT_EQ(find_invalid_utf8("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"), std::string_view::npos);
  EXPECT_EQ(find_invalid_utf8("ab\xC0\x80"), 2u);        // overlong
  EXPECT_EQ(find_invalid_utf8("\xED\xA0\x80"), 0u);      // surrogate
  EXPECT_EQ(find_invalid_utf8("\xF4\x90\x80\x80"), 0u);  // past U+10FFFF
  EXPECT_EQ(find_invalid_utf8("x\xE2\x82"), 1u);         // cut off
}

}  // namespace
}  // namespace distill::core
