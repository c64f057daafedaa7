#include "data/chat_template.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/digest.h"
#include "core/error.h"
#include "data/chat_family.h"
#include "data/jinja_text.h"
#include "data/utf8.h"

namespace distill::data {
namespace {

class KnownChatTemplate final : public ChatTemplate {
 public:
  KnownChatTemplate(std::string jinja, RecognisedChat recognised)
      : jinja_(std::move(jinja)), recognised_(std::move(recognised)) {}

  std::string render(std::span<const ChatMessage> messages, bool add_generation_prompt) const override {
    core::check(!messages.empty(), "a conversation has no messages");
    for (size_t i = 0; i < messages.size(); ++i) {
      const std::string& role = messages[i].role;
      core::check(utf8::valid_prefix(messages[i].content) == messages[i].content.size(),
                  "message {} is not valid UTF-8", i);
      core::check(role == "system" || role == "user" || role == "assistant",
                  "message {} has the role '{}'; known are system, user and assistant", i, role);
    }
    std::string text;
    core::with_context(fmt::format("chat template {}", family()),
                       [&] { recognised_.render(messages, add_generation_prompt, text); });
    return text;
  }

  std::string_view family() const override { return recognised_.family; }
  const std::string& jinja() const override { return jinja_; }
  std::string fingerprint() const override { return core::sha256_hex(jinja_); }

 private:
  std::string jinja_;
  RecognisedChat recognised_;
};

// transformers always says whether a generation prompt is wanted, so a default for it does nothing.
constexpr std::string_view kGenerationDefault =
    "{%ifnotadd_generation_promptisdefined%}{%setadd_generation_prompt=false%}{%endif%}";

std::optional<RecognisedChat> recognise(std::string_view jinja, const TemplateTokens& tokens) {
  const std::string text = jinja::normalised(jinja);
  std::string_view normal = text;
  if (normal.starts_with(kGenerationDefault)) normal.remove_prefix(kGenerationDefault.size());
  if (auto chat = recognise_chatml(normal)) return chat;
  if (auto chat = recognise_llama3(normal, tokens)) return chat;
  if (auto chat = recognise_deepseek(normal, tokens)) return chat;
  if (auto chat = recognise_mistral(normal, tokens)) return chat;
  return recognise_gemma(normal, tokens);
}

}  // namespace

std::shared_ptr<const ChatTemplate> ChatTemplate::from_jinja(std::string_view jinja, std::string_view bos_token,
                                                             std::string_view eos_token) {
  auto recognised = recognise(jinja, {std::string(bos_token), std::string(eos_token)});
  core::check(recognised.has_value(),
              "the model's chat template is of no known family; choose one with --chat-template ({})",
              fmt::join(families(), ", "));
  return std::make_shared<KnownChatTemplate>(std::string(jinja), *std::move(recognised));
}

std::shared_ptr<const ChatTemplate> ChatTemplate::from_family(std::string_view family, std::string_view bos_token,
                                                              std::string_view eos_token) {
  const auto known = family_templates();
  const auto found = std::ranges::find(known, family, &FamilyTemplate::family);
  if (found == known.end()) {
    core::fail_usage("--chat-template: there is no family '{}'; known are {}", family, fmt::join(families(), ", "));
  }
  return from_jinja(found->jinja, bos_token.empty() ? found->bos : bos_token,
                    eos_token.empty() ? found->eos : eos_token);
}

std::span<const std::string_view> ChatTemplate::families() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> result;
    for (const FamilyTemplate& entry : family_templates()) result.push_back(entry.family);
    return result;
  }();
  return names;
}

}  // namespace distill::data
