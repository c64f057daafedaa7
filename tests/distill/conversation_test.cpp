#include "distill/conversation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/nn/context_model.h"
#include "tests/nn/letter_tokenizer.h"

namespace distill {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

// The messages' contents with a letter for each role.
class PlainTemplate final : public data::ChatTemplate {
 public:
  std::string render(std::span<const data::ChatMessage> messages, bool add_generation_prompt) const override {
    std::string text;
    for (const auto& message : messages) text += message.role.substr(0, 1) + message.content;
    return add_generation_prompt ? text + "a" : text;
  }
  std::string_view family() const override { return "plain"; }
  const std::string& jinja() const override { return jinja_; }
  std::string fingerprint() const override { return "plain"; }

 private:
  std::string jinja_;
};

class ConversationTest : public testing::Test {
 protected:
  Conversation converse(std::string system = {}) {
    return {model_, std::make_shared<nn::LetterTokenizer>(), std::make_shared<PlainTemplate>(),
            nn::GenerateOptions{.sampling = {.temperature = 0}, .max_new_tokens = 10, .stop_tokens = {0}},
            std::move(system)};
  }
  // What a model says to a whole text, from the start.
  std::string answer_to(const std::string& text) {
    std::vector<int32_t> tokens = nn::LetterTokenizer().encode(text, false);
    const size_t prompt = tokens.size();
    while (tokens.size() < prompt + 10) {
      const at::Tensor hidden = model_.forward(nn::PackedBatch::from_sequences({tokens}));
      tokens.push_back(
          static_cast<int32_t>(model_.logits(hidden.narrow(0, hidden.size(0) - 1, 1)).argmax().item<int64_t>()));
      if (tokens.back() == 0) break;
    }
    return nn::LetterTokenizer().decode(std::span(tokens).subspan(prompt), true);
  }
  static bool never() { return false; }
  static void ignore(std::string_view) {}

  nn::ContextModel model_;
};

TEST_F(ConversationTest, AnswersWithAllThatWasSaidInMind) {
  Conversation conversation = converse("be brief");
  std::string shown;
  const auto first = conversation.say(
      "hello", [&](std::string_view text) { shown += text; }, never);
  EXPECT_EQ(first.text, answer_to("sbe briefuhelloa"));
  EXPECT_EQ(shown, first.text);
  const auto second = conversation.say("and", ignore, never);
  EXPECT_EQ(second.text, answer_to("sbe briefuhelloa" + first.text + "uanda"));
  EXPECT_EQ(conversation.messages().size(), 5u);
}

TEST_F(ConversationTest, ForgetsAllButTheSystemMessage) {
  Conversation conversation = converse("be brief");
  const auto first = conversation.say("hello", ignore, never);
  conversation.reset();
  EXPECT_EQ(conversation.messages().size(), 1u);
  EXPECT_EQ(conversation.say("hello", ignore, never).text, first.text);
}

TEST_F(ConversationTest, KeepsWhatWasSaidOfAnInterruptedAnswer) {
  Conversation conversation = converse();
  int steps = 0;
  const auto answer = conversation.say("hello", ignore, [&] { return ++steps > 3; });
  EXPECT_TRUE(answer.interrupted);
  EXPECT_EQ(answer.text, answer_to("uhelloa").substr(0, answer.text.size()));
  EXPECT_FALSE(answer.text.empty());
  EXPECT_EQ(conversation.messages().back().content, answer.text);
}

TEST_F(ConversationTest, IsAsBeforeWhenAMessageIsTooLong) {
  Conversation conversation = converse();
  conversation.say("hello", ignore, never);
  EXPECT_THAT([&] { conversation.say(std::string(300, 'x'), ignore, never); },
              ThrowsMessage<core::Error>(HasSubstr("context of 200")));
  EXPECT_EQ(conversation.messages().size(), 2u);
  EXPECT_FALSE(conversation.say("hi", ignore, never).text.empty());
}

}  // namespace
}  // namespace distill
