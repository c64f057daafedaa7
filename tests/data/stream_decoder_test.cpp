#include <gtest/gtest.h>

#include <random>

#include "data/tokenizer.h"
#include "data/utf8.h"

namespace distill::data {
namespace {

std::shared_ptr<const Tokenizer> qwen2() {
  return Tokenizer::from_json_file(DISTILL_TEST_DATA "/tokenizers/qwen2.json");
}

TEST(StreamDecoder, HoldsBytesBackUntilTheirCharacterIsComplete) {
  const auto tokenizer = qwen2();
  StreamDecoder decoder(tokenizer);
  const std::string text = "\U0001F9FF";
  const auto ids = tokenizer->encode(text);
  ASSERT_GT(ids.size(), 1u);
  for (size_t i = 0; i + 1 < ids.size(); ++i) EXPECT_EQ(decoder.push(ids[i]), "");
  EXPECT_EQ(decoder.push(ids.back()), text);
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StreamDecoder, EndsAnIncompleteCharacterWithAReplacement) {
  const auto tokenizer = qwen2();
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(tokenizer->encode("\U0001F9FF").front()), "");
  EXPECT_EQ(decoder.finish(), "\uFFFD");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StreamDecoder, LeavesSpecialTokensOutIfAsked) {
  const auto tokenizer = qwen2();
  const int32_t end = *tokenizer->token_to_id("<|im_end|>");
  EXPECT_EQ(StreamDecoder(tokenizer).push(end), "");
  EXPECT_EQ(StreamDecoder(tokenizer, false).push(end), "<|im_end|>");
}

TEST(StreamDecoder, GivesInTheEndWhatDecodeGives) {
  const auto tokenizer = qwen2();
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> ids(random() % 30);
    for (auto& id : ids) id = static_cast<int32_t>(random() % tokenizer->vocab_size());
    StreamDecoder decoder(tokenizer, false);
    std::string text;
    for (const int32_t id : ids) {
      const std::string shown = decoder.push(id);
      ASSERT_EQ(utf8::valid_prefix(shown), shown.size());
      text += shown;
    }
    text += decoder.finish();
    ASSERT_EQ(text, tokenizer->decode(ids));
  }
}

}  // namespace
}  // namespace distill::data
