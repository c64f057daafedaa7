#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/text_file.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::ThrowsMessage;

const std::string kFolder = DISTILL_TEST_DATA "/tokenizers/";

std::shared_ptr<const Tokenizer> open(const std::string& name) {
  return Tokenizer::from_json_file(kFolder + name + ".json");
}

class GoldenTokenizer : public testing::TestWithParam<const char*> {};

// golden.json comes from tests/parity/make_tokenizers.py.
TEST_P(GoldenTokenizer, GivesTheIdsOfHuggingFace) {
  const auto tokenizer = open(GetParam());
  const json golden = core::read_json_file(kFolder + "golden.json");
  for (const json& entry : golden.at(GetParam())) {
    EXPECT_EQ(tokenizer->encode(entry.at("text").get<std::string>()), entry.at("ids").get<std::vector<int32_t>>())
        << entry.at("text");
  }
}

TEST_P(GoldenTokenizer, WritesAFileThatReadsBackTheSame) {
  const auto tokenizer = open(GetParam());
  const TemporaryFolder folder;
  const auto path = folder.path() / "tokenizer.json";
  core::write_file_atomically(path, tokenizer->to_json());
  const auto again = Tokenizer::from_json_file(path);
  EXPECT_EQ(again->fingerprint(), tokenizer->fingerprint());
  EXPECT_EQ(again->to_json(), tokenizer->to_json());
  const json golden = core::read_json_file(kFolder + "golden.json");
  for (const json& entry : golden.at(GetParam())) {
    const auto text = entry.at("text").get<std::string>();
    EXPECT_EQ(again->encode(text), tokenizer->encode(text));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTokenizer,
                         testing::Values("deepseek-v3", "llama3", "mixed", "qwen2", "tekken"), [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST(Tokenizer, FramesATextOnlyIfAsked) {
  const auto tokenizer = open("llama3");
  const int32_t begin = *tokenizer->token_to_id("<|begin_of_text|>");
  EXPECT_EQ(tokenizer->encode("").size(), 1u);
  EXPECT_EQ(tokenizer->encode("hi").front(), begin);
  EXPECT_NE(tokenizer->encode("hi", false).front(), begin);
  EXPECT_EQ(tokenizer->encode("<|begin_of_text|>", false), std::vector{begin});
}

TEST(Tokenizer, DecodesWhatItEncoded) {
  const auto tokenizer = open("llama3");
  const std::string text = "Grüße, 世界! 👩‍👩‍👧‍👦\r\n\t  x = 12345;";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, false)), text);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text), true), text);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), "<|begin_of_text|>" + text);
}

TEST(Tokenizer, ReadsInvalidUtf8AsReplacementCharacters) {
  const auto tokenizer = open("qwen2");
  EXPECT_EQ(tokenizer->encode("a\xED\xA0\x80\xFF z\xE2\x82"), tokenizer->encode("a\uFFFD\uFFFD\uFFFD\uFFFD z\uFFFD"));
}

TEST(Tokenizer, RefusesIdsOutsideTheVocabulary) {
  const auto tokenizer = open("qwen2");
  const int32_t size = tokenizer->vocab_size();
  for (const int32_t id : {-1, size, INT32_MAX}) {
    const std::vector<int32_t> ids{0, id};
    const auto says = HasSubstr(fmt::format("token id {} is outside the vocabulary of {} tokens", id, size));
    EXPECT_THAT([&] { tokenizer->decode(ids); }, ThrowsMessage<core::Error>(says));
    EXPECT_THAT([&] { tokenizer->token_bytes(id); }, ThrowsMessage<core::Error>(says));
    EXPECT_THAT([&] { tokenizer->is_special(id); }, ThrowsMessage<core::Error>(says));
  }
  EXPECT_EQ(tokenizer->token_to_id("no such token"), std::nullopt);
}

TEST(Tokenizer, TellsSpecialTokensAndWhatTokensStandFor) {
  const auto tokenizer = open("qwen2");
  const int32_t end = *tokenizer->token_to_id("<|im_end|>");
  EXPECT_TRUE(tokenizer->is_special(end));
  EXPECT_FALSE(tokenizer->is_special(*tokenizer->token_to_id("<think>")));
  EXPECT_EQ(tokenizer->token_bytes(end), "<|im_end|>");
  EXPECT_EQ(tokenizer->token_bytes(*tokenizer->token_to_id("\u0120")), " ");
  EXPECT_EQ(tokenizer->token_bytes(tokenizer->encode("\xC3\xA9").front()).front(), '\xC3');
}

TEST(Tokenizer, HasAFingerprintOfWhatDecidesTheIds) {
  EXPECT_EQ(open("qwen2")->fingerprint(), open("qwen2")->fingerprint());
  EXPECT_NE(open("qwen2")->fingerprint(), open("llama3")->fingerprint());
  EXPECT_EQ(open("qwen2")->fingerprint().size(), 64u);
}

// Long runs without a place to cut are merged in O(n log n) steps.
TEST(Tokenizer, EncodesAMegabyteWithoutASpace) {
  const auto tokenizer = open("llama3");
  std::mt19937 random(1);
  std::string letters(1 << 20, 'a');
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(letters, false)), letters);
  for (char& letter : letters) letter = static_cast<char>('a' + random() % 26);
  const auto started = std::chrono::steady_clock::now();
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(letters, false)), letters);
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(20));
}

TEST(Tokenizer, IsSafeToUseFromSeveralThreads) {
  const auto tokenizer = open("mixed");
  const std::string text = core::read_file(kFolder + "golden.json").substr(0, 4000);
  const auto expected = tokenizer->encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) count += tokenizer->encode(text) != expected;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(wrong, testing::Each(0));
}

}  // namespace
}  // namespace distill::data
