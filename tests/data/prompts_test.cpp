#include "data/prompts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/atomic_file.h"
#include "core/error.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using testing::HasSubstr;

class Prompts : public testing::Test {
 protected:
  std::vector<Prompt> read(std::string_view contents) {
    const auto path = folder_.path() / "prompts.jsonl";
    core::write_file_atomically(path, contents);
    return read_prompts(path);
  }
  // The error after the file's name.
  std::string error(std::string_view contents) {
    try {
      read(contents);
    } catch (const core::Error& error) {
      const std::string_view message = error.what();
      const size_t name = message.find("prompts.jsonl:");
      return name == std::string_view::npos ? "no file: " + std::string(message)
                                            : std::string(message.substr(name + 14));
    }
    return "no error";
  }
  TemporaryFolder folder_;
};

TEST_F(Prompts, AreTextsAndConversationsWithWhatARightAnswerIs) {
  const auto prompts = read(R"({"id": "a", "prompt": "1 + 1 ="}

{"id": 7, "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Größe?"}], "answer": "x", "verifier": "exact"}
{"id": "c", "prompt": "p", "answer": 42}
{"id": "d", "prompt": "p", "answer": 2.5, "verifier": "numeric"})");
  ASSERT_EQ(prompts.size(), 4u);
  EXPECT_EQ(prompts[0].id, "a");
  EXPECT_EQ(prompts[0].text, "1 + 1 =");
  EXPECT_TRUE(prompts[0].messages.empty());
  EXPECT_FALSE(prompts[0].answer.has_value());
  EXPECT_EQ(prompts[1].id, "7");
  EXPECT_EQ(prompts[1].line, 3u);
  EXPECT_FALSE(prompts[1].text.has_value());
  ASSERT_EQ(prompts[1].messages.size(), 2u);
  EXPECT_EQ(prompts[1].messages[1].role, "user");
  EXPECT_EQ(prompts[1].messages[1].content, "Größe?");
  EXPECT_EQ(prompts[1].verifier, "exact");
  EXPECT_EQ(prompts[2].answer, "42");
  EXPECT_EQ(prompts[3].answer, "2.5");
}

TEST_F(Prompts, NameTheLineAndTheKeyOfADefect) {
  const std::string good = R"({"id": "a", "prompt": "x"})"
                           "\n";
  const auto second = [&](std::string_view line) { return error(good + std::string(line)); };
  EXPECT_THAT(second(R"({"id": "b", "promt": "x"})"),
              HasSubstr(R"(2: prompt: promt: unknown key, did you mean "prompt"?)"));
  EXPECT_THAT(second(R"({"id": "b", "messages": [{"role": "user", "contents": "x"}]})"),
              HasSubstr("messages[0]: content"));
  EXPECT_THAT(second(R"({"id": "b", "messages": [{"role": "user", "content": "x", "name": "y"}]})"),
              HasSubstr("name: unknown key"));
  EXPECT_THAT(second(R"({"id": "a", "prompt": "y"})"), HasSubstr(R"(2: prompt: id: "a" is the id of line 1 too)"));
  EXPECT_THAT(second(R"({"prompt": "x"})"), HasSubstr("2: prompt: id: is missing"));
  EXPECT_THAT(second(R"({"id": "", "prompt": "x"})"), HasSubstr("id: is empty"));
  EXPECT_THAT(second(R"({"id": "a\u0000b", "prompt": "x"})"), HasSubstr("id: contains control characters"));
  EXPECT_THAT(second(R"({"id": 1.5, "prompt": "x"})"), HasSubstr("id: expected text or an integer, found 1.5"));
  EXPECT_THAT(second(R"({"id": "b", "prompt": ""})"), HasSubstr("2: prompt: prompt: is empty"));
  EXPECT_THAT(second(R"({"id": "b", "prompt": 5})"), HasSubstr("prompt: expected text, found 5"));
  EXPECT_THAT(second(R"({"id": "b"})"), HasSubstr("either"));
  EXPECT_THAT(second(R"({"id": "b", "prompt": "x", "messages": [{"role": "user", "content": "x"}]})"),
              HasSubstr("either"));
  EXPECT_THAT(second(R"({"id": "b", "messages": []})"), HasSubstr("messages: is empty"));
  EXPECT_THAT(second(R"({"id": "b", "messages": {"role": "user"}})"), HasSubstr("messages: expected a list"));
  EXPECT_THAT(second(R"({"id": "b", "messages": ["x"]})"), HasSubstr("messages[0]"));
  EXPECT_THAT(second(R"({"id": "b", "messages": [{"role": "user", "content": ""}]})"),
              HasSubstr("the last one is empty"));
  EXPECT_THAT(second(R"({"id": "b", "messages": [{"role": "assistant", "content": "x"}]})"),
              HasSubstr("nothing to answer"));
  EXPECT_THAT(second(R"({"id": "b", "prompt": "x", "verifier": "exact"})"), HasSubstr("verifier: needs an \"answer\""));
  EXPECT_THAT(second(R"({"id": "b", "prompt": "x", "answer": ["y"]})"), HasSubstr("answer: expected text or a number"));
  EXPECT_THAT(second("{\"id\": \"b\", \"prompt\": \"\xff\"}"), HasSubstr("2: not valid UTF-8"));
  EXPECT_THAT(second(R"({"id": "b", "prompt": "x")"), HasSubstr("2: parse error"));
  EXPECT_THAT(second("[]"), HasSubstr("2: prompt: expected keys and values"));
}

TEST_F(Prompts, ReportAFileWithoutAny) {
  EXPECT_THAT(error("\n \n"), HasSubstr("no prompts"));
  try {
    read_prompts(folder_.path() / "none.jsonl");
    ADD_FAILURE() << "there is no such file";
  } catch (const core::Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("none.jsonl: No such file"));
  }
}

}  // namespace
}  // namespace distill::data
