#include "teacher/completion_api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/text_file.h"
#include "tests/nn/letter_tokenizer.h"

namespace distill::teacher {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::FloatNear;
using testing::HasSubstr;
using testing::ThrowsMessage;

class CompletionApi : public testing::Test {
 protected:
  CompletionApi() { request_.options.stop_tokens = {0}; }

  AnswerReader::Answer read(const std::vector<json>& events) {
    AnswerReader reader(mapper_, 2, 10);
    for (const json& event : events) reader.read(event.dump());
    reader.read("[DONE]");
    EXPECT_TRUE(reader.complete());
    return reader.finish(request_);
  }
  static json row(const json& token, std::initializer_list<json> alternatives) {
    json result = token;
    result["top_logprobs"] = alternatives;
    return {{"choices", {{{"index", 0}, {"logprobs", {{"content", {result}}}}}}}};
  }
  static json end(const char* reason = "length") { return {{"choices", {{{"finish_reason", reason}}}}}; }

  std::shared_ptr<const data::Tokenizer> tokenizer_ = std::make_shared<nn::LetterTokenizer>(27);
  RemoteTokenMapper mapper_{tokenizer_};
  RemoteRequest request_{.id = "p", .sample = 0, .prompt = {3, 4}};
};

TEST_F(CompletionApi, MapsTokensByNumberByBytesAndByText) {
  EXPECT_EQ(mapper_.id_of({.id = 3, .bytes = "c"}), 3);
  EXPECT_EQ(mapper_.id_of({.bytes = "c", .text = "?"}), 3);
  EXPECT_EQ(mapper_.id_of({.text = "c"}), 3);
  EXPECT_EQ(mapper_.id_of({.text = "token_id:3"}), 3);
  EXPECT_EQ(mapper_.id_of({.text = "bytes:\\x63"}), 3);
  EXPECT_EQ(mapper_.id_of({.text = "<end>"}), 0);
  EXPECT_EQ(mapper_.id_of({.id = 0, .bytes = ""}), 0) << "servers write special tokens as nothing";
}

TEST_F(CompletionApi, RefusesTokensThatItCannotTellApartOrDoesNotKnow) {
  const RemoteTokenMapper ambiguous(std::make_shared<nn::LetterTokenizer>(29));  // 27 and 28 read "_"
  EXPECT_THAT([&] { ambiguous.id_of({.text = "_"}); }, ThrowsMessage<TokenMismatch>(HasSubstr("several")));
  EXPECT_EQ(ambiguous.id_of({.id = 28, .bytes = "_"}), 28);
  EXPECT_THAT([&] { mapper_.id_of({.text = "th"}); },
              ThrowsMessage<TokenMismatch>(HasSubstr("none of the tokenizer's")));
  EXPECT_THAT([&] { mapper_.id_of({.id = 27}); },
              ThrowsMessage<TokenMismatch>(HasSubstr("outside the tokenizer's 27")));
  EXPECT_THAT([&] { mapper_.id_of({.id = -1}); }, ThrowsMessage<TokenMismatch>(HasSubstr("id -1")));
  EXPECT_THAT([&] { mapper_.id_of({.id = 3, .bytes = "bc"}); },
              ThrowsMessage<TokenMismatch>(HasSubstr("lost a token")));
  EXPECT_THAT([&] { mapper_.id_of({.text = "\xEF\xBF\xBD"}); },
              ThrowsMessage<TokenMismatch>(HasSubstr("part of a character")));
}

TEST_F(CompletionApi, KeepsTheMostProbableTokensAndTheMassOfTheRest) {
  const json b{{"token", "b"}, {"logprob", std::log(0.25)}}, c{{"token", "c"}, {"logprob", std::log(0.5)}},
      d{{"token", "d"}, {"logprob", std::log(0.125)}}, z{{"token", "z"}, {"logprob", nullptr}};
  const auto answer = read({row(b, {d, b, c}), row(c, {c, z}), end()});
  EXPECT_THAT(answer.tokens, ElementsAre(2, 3));
  EXPECT_EQ(answer.finish_reason, data::FinishReason::kLength);
  EXPECT_NEAR(answer.log_probability, std::log(0.125), 1e-12);
  EXPECT_THAT(answer.targets.offsets, ElementsAre(0, 2, 4));
  EXPECT_THAT(answer.targets.ids, ElementsAre(3, 2, 3, 26));
  EXPECT_THAT(answer.targets.weights,
              ElementsAre(FloatNear(0.5, 1e-6), FloatNear(0.25, 1e-6), FloatNear(0.5, 1e-6), 0.0F));
  EXPECT_THAT(answer.targets.uncovered, ElementsAre(FloatNear(0.25, 1e-6), FloatNear(0.5, 1e-6)));
}

TEST_F(CompletionApi, ReadsTheColumnsOfOlderServers) {
  const json logprobs{{"tokens", {"b", "<end>"}},
                      {"token_logprobs", {-1.0, -0.5}},
                      {"top_logprobs", {{{"b", -1.0}, {"a", -2.0}}, {{"<end>", -0.5}}}}};
  const auto answer = read({{{"choices", {{{"text", "b"}, {"logprobs", logprobs}, {"finish_reason", "stop"}}}}}});
  EXPECT_THAT(answer.tokens, ElementsAre(2, 0));
  EXPECT_THAT(answer.targets.ids, ElementsAre(2, 1, 0));
}

TEST_F(CompletionApi, RefusesAnswersThatContradictThemselves) {
  const json b{{"token", "b"}, {"logprob", -0.1}}, c{{"token", "c"}, {"logprob", -0.1}};
  const auto usage = [](int prompt, int completion) -> json {
    return {{"choices", json::array()}, {"usage", {{"prompt_tokens", prompt}, {"completion_tokens", completion}}}};
  };
  const auto refuses = [&](const std::vector<json>& events, const char* reason) {
    EXPECT_THAT([&] { read(events); }, ThrowsMessage<TokenMismatch>(HasSubstr(reason)));
  };
  EXPECT_THAT(read({row(b, {b}), end("stop"), usage(2, 2)}).tokens, ElementsAre(2)) << "the end token is not shown";
  refuses({row(b, {b}), end(), usage(2, 2)}, "made 2 tokens but sent the log-probabilities of 1");
  refuses({row(b, {b}), end(), usage(3, 1)}, "read 3 prompt tokens where the local tokenizer and template make 2");
  refuses({row(b, {b, b}), end()}, "answer token 0: the server lists token 2 twice");
  refuses({row(b, {b, c}), end()}, "probabilities sum to 1.8");
  refuses({row(b, {}), end()}, "no \"top_logprobs\"");
  refuses({end()}, "no tokens");
  refuses({row(b, {b}), end("content_filter")}, "content_filter");
  json other = row(b, {b});
  other["choices"][0]["text"] = "x";
  refuses({other, end()}, "differs from that of its tokens at byte 0");
}

TEST_F(CompletionApi, RefusesLogProbabilitiesThatAreNone) {
  const json b{{"token", "b"}, {"logprob", -0.1}};
  const auto refuses = [&](const json& chosen, const json& alternative, const char* reason) {
    AnswerReader reader(mapper_, 2, 10);
    EXPECT_THAT([&] { reader.read(row(chosen, {alternative}).dump()); }, ThrowsMessage<TokenMismatch>(reason));
  };
  refuses({{"token", "b"}, {"logprob", nullptr}}, b,
          "answer token 0: the token that was drawn has a log-probability of -inf");
  refuses({{"token", "b"}, {"logprob", 5}}, b, "answer token 0: the token that was drawn has a log-probability of 5");
  refuses(b, {{"token", "b"}, {"logprob", 5}}, "answer token 0: an alternative has a log-probability of 5");
  const json never{{"token", "b"}, {"logprob", -1.7e308}};
  EXPECT_THAT(
      [&] {
        read({row(never, {never}), row(never, {never}), end()});
      },
      ThrowsMessage<TokenMismatch>(HasSubstr("no probability")));
  json rounded = b;
  rounded["logprob"] = 1e-4;
  EXPECT_THAT(read({row(rounded, {rounded}), end()}).tokens, ElementsAre(2));
}

TEST_F(CompletionApi, DoesNotCallAnAnswerCompleteBeforeItsEnd) {
  const json b{{"token", "b"}, {"logprob", -0.1}};
  AnswerReader reader(mapper_, 2, 1);
  reader.read(row(b, {b}).dump());
  EXPECT_FALSE(reader.complete());
  EXPECT_THAT([&] { reader.read(row(b, {b}).dump()); },
              ThrowsMessage<core::Error>(HasSubstr("more than the 1 allowed")));
  reader.read(end().dump());
  EXPECT_FALSE(reader.complete());
  reader.read("[DONE]");
  EXPECT_TRUE(reader.complete());
}

TEST_F(CompletionApi, ReportsWhatIsNoAnswer) {
  for (const char* event :
       {"{\"choices\"", "[]", "3", "{}", "{\"choices\": 3}", "{\"choices\": [{}, {}]}",
        "{\"choices\": [{\"logprobs\": {\"content\": [{}]}}]}", "{\"choices\": [{\"logprobs\": {\"content\": 3}}]}",
        R"({"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [], "top_logprobs": []}}]})",
        "{\"error\": {\"message\": \"overloaded\"}}"}) {
    AnswerReader reader(mapper_, 2, 10);
    EXPECT_THROW(reader.read(event), core::Error) << event;
  }
}

TEST_F(CompletionApi, RefusesJsonThatIsNestedTooDeeply) {
  const std::string deep = std::string(300000, '[') + std::string(300000, ']');
  AnswerReader reader(mapper_, 2, 10);
  EXPECT_THAT([&] { reader.read(R"({"choices": [{"logprobs": {"content": [{"token": )" + deep + "}]}}]}"); },
              ThrowsMessage<core::Error>(HasSubstr("nested deeper than 64 levels")));
  EXPECT_THAT([&] { served_models(R"({"data": )" + deep + "}"); },
              ThrowsMessage<core::Error>(HasSubstr("nested deeper than 64 levels")));
  EXPECT_THAT(error_message(R"({"error": )" + deep + "}"), testing::StartsWith(R"({"error": [[[)"));
}

TEST_F(CompletionApi, AsksEachServerWhatItUnderstands) {
  request_.options.max_new_tokens = 7;
  const json plain = request_body(request_, RemoteApi::kCompletions, {.name = "m"}, 5);
  EXPECT_EQ(plain["prompt"], json({3, 4}));
  EXPECT_EQ(plain["logprobs"], 5);
  EXPECT_EQ(plain["max_tokens"], 7);
  EXPECT_FALSE(plain.contains("top_k") || plain.contains("min_p"));
  const json llama = request_body(request_, RemoteApi::kCompletions, {.name = "m", .kind = ServerKind::kLlamaCpp}, 5);
  EXPECT_EQ(llama["top_k"], 0);
  EXPECT_EQ(llama["min_p"], 0.0);
  const json vllm = request_body(request_, RemoteApi::kCompletions, {.name = "m", .kind = ServerKind::kVllm}, 5);
  EXPECT_EQ(vllm["top_k"], -1);
  EXPECT_EQ(vllm["return_tokens_as_token_ids"], true);
  request_.messages = {{.role = "user", .content = "hi"}};
  const json chat = request_body(request_, RemoteApi::kChat, {.name = "m"}, 5);
  EXPECT_EQ(chat["messages"][0]["content"], "hi");
  EXPECT_EQ(chat["top_logprobs"], 5);
  EXPECT_FALSE(chat.contains("prompt"));
  request_.sample = 1;
  EXPECT_NE(request_body(request_, RemoteApi::kChat, {.name = "m"}, 5)["seed"], chat["seed"]);
}

TEST(Endpoint, CompletesTheAddressAndRefusesSecretsInIt) {
  EXPECT_EQ(endpoint_base("http://host:8000"), "http://host:8000/v1");
  EXPECT_EQ(endpoint_base("http://host:8000/"), "http://host:8000/v1");
  EXPECT_EQ(endpoint_base("https://host/v1/"), "https://host/v1");
  EXPECT_EQ(endpoint_base("https://host/api/v3"), "https://host/api/v3");
  for (const char* url : {"http://me:secret@host", "http://host/v1?key=secret", "http://host#secret"}) {
    EXPECT_THAT([&] { endpoint_base(url); }, ThrowsMessage<core::UsageError>(testing::AllOf(
                                                 HasSubstr("DISTILL_API_KEY"), Not(HasSubstr("secret")))));
  }
  for (const char* url : {"ftp://host", "http://", "http://ho st/"}) {
    EXPECT_THROW(endpoint_base(url), core::UsageError) << url;
  }
}

TEST(ErrorMessage, IsWhatTheServerGivesAsItsReason) {
  EXPECT_EQ(error_message(R"({"error": {"message": "too long"}})"), "too long");
  EXPECT_EQ(error_message(R"({"error": "slow down"})"), "slow down");
  EXPECT_EQ(error_message(R"({"error": {"code": 7}})"), R"({"code":7})");
  EXPECT_EQ(error_message("<html>"), "<html>");
  EXPECT_EQ(error_message(""), "no reason given");
}

TEST(Presentable, LeavesTheKeyOut) {
  EXPECT_EQ(presentable("no: sk-1, sk-1!", "sk-1"), "no: <key>, <key>!");
  EXPECT_EQ(presentable("no key", "key"), "no <key>");
  EXPECT_EQ(presentable("no", ""), "no");
  for (size_t before = 380; before <= 400; ++before) {
    EXPECT_THAT(presentable(std::string(before, '.') + "sk-314159", "sk-314159"), Not(HasSubstr("sk")));
  }
}

TEST(Presentable, IsOneShortLineOfUtf8) {
  EXPECT_EQ(presentable("too\r\nlong", ""), "too  long");
  EXPECT_EQ(presentable(std::string(5000, 'x'), ""), std::string(400, 'x') + "...");
  EXPECT_EQ(presentable("d\xE9j\xE0 vu", ""), "d?j? vu");
  std::string accents;
  for (int i = 0; i < 300; ++i) accents += "\xE2\x82\xAC";
  EXPECT_EQ(core::find_invalid_utf8(presentable(accents, "")), std::string::npos);
}

}  // namespace
}  // namespace distill::teacher
