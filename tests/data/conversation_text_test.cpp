#include "data/conversation_text.h"

#include <gtest/gtest.h>

#include "tests/data/expect_error.h"

namespace distill::data {
namespace {

using Messages = std::vector<ChatMessage>;

const std::vector<Messages> kConversations{
    {{"user", "What is 2 + 2?"}},
    {{"system", "Be brief."}, {"user", "What is\n\n2 + 2?"}},
    {{"user", "Hello"}, {"assistant", "Hello. What is it?"}, {"user", "Nothing."}},
    {{"system", "Be brief."}, {"user", "1"}, {"assistant", "2"}, {"user", "3"}, {"assistant", "4"}, {"user", "ü😀"}},
};

TEST(ConversationText, FindsTheMessagesOfEveryFamily) {
  for (const std::string_view family : ChatTemplate::families()) {
    const auto chat = ChatTemplate::from_family(family, "", "");
    for (const Messages& messages : kConversations) {
      std::string text;
      if (!error_of([&] { text = chat->render(messages, true); }).empty()) continue;  // no system messages
      const auto found = parse_conversation(*chat, text);
      ASSERT_TRUE(found.has_value()) << family << ": " << text;
      EXPECT_EQ(chat->render(*found, true), text);
      // Some families write the system message into the user's.
      if (found->size() != messages.size()) continue;
      for (size_t i = 0; i < messages.size(); ++i) {
        EXPECT_EQ((*found)[i].role, messages[i].role) << family;
        EXPECT_EQ((*found)[i].content, messages[i].content) << family;
      }
    }
  }
}

TEST(ConversationText, FindsNoneInOtherText) {
  const auto chat = ChatTemplate::from_family("chatml", "", "");
  EXPECT_FALSE(parse_conversation(*chat, "What is 2 + 2?"));
  EXPECT_FALSE(parse_conversation(*chat, ""));
  EXPECT_FALSE(parse_conversation(*chat, "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"));
  const std::string text = chat->render(Messages{{"user", "a"}}, true);
  EXPECT_FALSE(parse_conversation(*chat, text + "It"));
}

}  // namespace
}  // namespace distill::data
