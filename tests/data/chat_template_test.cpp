#include "data/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "core/error.h"

namespace distill::data {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

std::string render(std::string_view family, const std::vector<ChatMessage>& messages, bool add_generation_prompt) {
  return ChatTemplate::from_family(family, "", "")->render(messages, add_generation_prompt);
}

const std::vector<ChatMessage> kTalk = {
    {"system", "Be brief."}, {"user", " Hi "}, {"assistant", "<think>\nhm\n</think>\n\nHello."}, {"user", "Bye"}};

TEST(ChatTemplate, RecognisesEachOfItsOwnFamilies) {
  for (const std::string_view family : ChatTemplate::families()) {
    EXPECT_EQ(ChatTemplate::from_family(family, "", "")->family(), family);
  }
}

TEST(ChatTemplate, PutsInADefaultSystemMessageWhereTheFamilyHasOne) {
  EXPECT_EQ(render("smollm2", {{"user", "Hi"}}, true),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(render("qwen2", {{"user", "Hi"}}, false),
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
  EXPECT_EQ(render("chatml", {{"user", "Hi"}}, false), "<|im_start|>user\nHi<|im_end|>\n");
}

TEST(ChatTemplate, Qwen3ForgetsEarlierReasoning) {
  EXPECT_EQ(render("qwen3", kTalk, true),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
            "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(render("qwen3", {kTalk[1], kTalk[2]}, false),
            "<|im_start|>user\n Hi <|im_end|>\n"
            "<|im_start|>assistant\n<think>\nhm\n</think>\n\nHello.<|im_end|>\n");
}

TEST(ChatTemplate, Llama31TellsTheDatesAndTrims) {
  EXPECT_EQ(render("llama3.1", {{"user", " Hi\n"}}, true),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST(ChatTemplate, DeepSeekR1LeavesReasoningOutAndBeginsWithIt) {
  EXPECT_EQ(render("deepseek-r1", kTalk, true),
            "<｜begin▁of▁sentence｜>Be brief.<｜User｜> Hi <｜Assistant｜>\n\nHello.<｜end▁of▁sentence｜><｜User｜>Bye"
            "<｜Assistant｜><think>\n");
}

TEST(ChatTemplate, MistralVersionsDifferInSpacesAndInTheSystemsPlace) {
  EXPECT_EQ(render("mistral-v1", {{"system", "S"}, {"user", "a"}, {"assistant", "b"}, {"user", "c"}}, true),
            "<s> [INST] S\n\na [/INST] b</s> [INST] c [/INST]");
  EXPECT_EQ(render("mistral-v3", {{"system", "S"}, {"user", "a"}, {"assistant", "b "}, {"user", "c"}}, true),
            "<s>[INST] a[/INST] b</s>[INST] S\n\nc[/INST]");
  EXPECT_EQ(render("mistral-nemo", {{"system", "S"}, {"user", "a"}, {"assistant", "b "}, {"user", "c"}}, true),
            "<s>[INST]a[/INST]b </s>[INST]S\n\nc[/INST]");
}

TEST(ChatTemplate, GemmaCallsTheAssistantModel) {
  EXPECT_EQ(render("gemma3", {{"system", "S "}, {"user", " a"}, {"assistant", "b"}}, true),
            "<bos><start_of_turn>user\nS \n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
            "<start_of_turn>model\n");
  EXPECT_THAT(
      [] {
        render("gemma", {{"system", "S"}}, true);
      },
      ThrowsMessage<core::Error>(HasSubstr("System role not supported")));
}

TEST(ChatTemplate, RefusesRolesTheFamilyDoesNotAllow) {
  EXPECT_THAT(
      [] {
        render("mistral-v1", {{"user", "a"}, {"user", "b"}}, false);
      },
      ThrowsMessage<core::Error>(HasSubstr("conversation roles must alternate")));
  EXPECT_THAT(
      [] {
        render("chatml", {{"user", "a"}, {"tool", "b"}}, false);
      },
      ThrowsMessage<core::Error>(HasSubstr("message 1 has the role 'tool'")));
  EXPECT_THAT([] { render("chatml", {}, false); }, ThrowsMessage<core::Error>(HasSubstr("has no messages")));
  EXPECT_THAT(
      [] {
        render("chatml", {{"user", "\xFF"}}, false);
      },
      ThrowsMessage<core::Error>(HasSubstr("message 0 is not valid UTF-8")));
}

TEST(ChatTemplate, RefusesTemplatesItDoesNotKnowAndNamesTheOption) {
  for (const char* jinja :
       {"", "{{ messages", "{% for m in messages %}{{ m.content }}{% endfor %}", "{#", "{{'", "{%-"}) {
    EXPECT_THAT([&] { ChatTemplate::from_jinja(jinja, "<s>", "</s>"); },
                ThrowsMessage<core::Error>(HasSubstr("choose one with --chat-template (chatml, smollm2")));
  }
  EXPECT_THAT([] { ChatTemplate::from_family("chatlm", "", ""); },
              ThrowsMessage<core::UsageError>(HasSubstr("there is no family 'chatlm'; known are chatml")));
}

TEST(ChatTemplate, RefusesAKnownTemplateWithSomethingElseInIt) {
  const std::string jinja = ChatTemplate::from_family("chatml", "", "")->jinja();
  EXPECT_THAT([&] { ChatTemplate::from_jinja(jinja + "!", "", ""); }, testing::Throws<core::Error>());
  EXPECT_THAT([&] { ChatTemplate::from_jinja("{{ bos_token }}" + jinja, "", ""); }, testing::Throws<core::Error>());
  EXPECT_EQ(ChatTemplate::from_jinja(jinja + "\n", "", "")->family(), "chatml");
}

TEST(ChatTemplate, KeepsTheTextItWasMadeFrom) {
  const std::string jinja = ChatTemplate::from_family("gemma", "", "")->jinja();
  const auto chat = ChatTemplate::from_jinja(jinja, "<s>", "</s>");
  EXPECT_EQ(chat->jinja(), jinja);
  EXPECT_EQ(chat->fingerprint().size(), 64u);
  EXPECT_NE(chat->fingerprint(), ChatTemplate::from_family("gemma3", "", "")->fingerprint());
}

}  // namespace
}  // namespace distill::data
