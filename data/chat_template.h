// Renders conversations the way a model was trained to read them. Families are recognised from the text of the Jinja
// template that comes with the model; the output equals transformers' apply_chat_template.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace distill::data {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

class ChatTemplate {
 public:
  // Recognises ChatML (SmolLM2, Qwen2/2.5/3), Llama-3, DeepSeek-V3/R1, Mistral and Gemma templates. `bos_token` and
  // `eos_token` are the texts the template refers to. Throws Error naming --chat-template if it is none of them.
  static std::shared_ptr<const ChatTemplate> from_jinja(std::string_view jinja, std::string_view bos_token,
                                                        std::string_view eos_token);
  // `family` is one of families(), as given to --chat-template. Throws UsageError listing them.
  static std::shared_ptr<const ChatTemplate> from_family(std::string_view family, std::string_view bos_token,
                                                         std::string_view eos_token);
  static std::span<const std::string_view> families();
  virtual ~ChatTemplate() = default;

  // The text to tokenise (with special tokens written out, so encode it without adding any). `add_generation_prompt`
  // ends it where the assistant's answer begins. Throws Error on roles in an order the family does not allow.
  virtual std::string render(std::span<const ChatMessage> messages, bool add_generation_prompt) const = 0;

  virtual std::string_view family() const = 0;
  // The Jinja text, to be exported beside a student.
  virtual const std::string& jinja() const = 0;
  // SHA-256 (hex) of the Jinja text.
  virtual std::string fingerprint() const = 0;
};

}  // namespace distill::data
