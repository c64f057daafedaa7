// What each family of chat templates implements. A family reads the text of a template and gives back how to render
// conversations as that template would, or nothing if the template is not of the family or does something unknown.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "data/chat_template.h"

namespace distill::data {

// The texts of a model's BOS and EOS tokens.
struct TemplateTokens {
  std::string bos;
  std::string eos;
};

// Appends the rendered conversation, which is valid UTF-8, not empty and has only the roles system, user and assistant.
// Throws Error with the template's own message where it raises one.
using ChatRenderer =
    std::function<void(std::span<const ChatMessage> messages, bool add_generation_prompt, std::string& text)>;

struct RecognisedChat {
  std::string_view family;  // as in ChatTemplate::families() where there is a template of ours for it
  ChatRenderer render;
};

// `normal` is the template after jinja::normalised(), without a default for add_generation_prompt.
std::optional<RecognisedChat> recognise_chatml(std::string_view normal);
std::optional<RecognisedChat> recognise_llama3(std::string_view normal, const TemplateTokens& tokens);
std::optional<RecognisedChat> recognise_deepseek(std::string_view normal, const TemplateTokens& tokens);
std::optional<RecognisedChat> recognise_mistral(std::string_view normal, const TemplateTokens& tokens);
std::optional<RecognisedChat> recognise_gemma(std::string_view normal, const TemplateTokens& tokens);

// A template of ours for --chat-template. For plain messages it renders as the family's published ones do.
struct FamilyTemplate {
  std::string_view family;
  std::string jinja;
  std::string_view bos;  // where the model names none
  std::string_view eos;
};
std::span<const FamilyTemplate> family_templates();

}  // namespace distill::data
