// A conversation with a model, for the command line's chat.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "nn/causal_lm.h"
#include "nn/generation_engine.h"

namespace distill {

class Conversation {
 public:
  // The model outlives the conversation. `options` hold for every answer, `draft_tokens` as in nn::EngineOptions.
  // `system` opens the conversation; empty leaves it to the template.
  Conversation(nn::CausalLM& model, std::shared_ptr<const data::Tokenizer> tokenizer,
               std::shared_ptr<const data::ChatTemplate> chat_template, nn::GenerateOptions options,
               std::string system = {}, std::optional<int64_t> draft_tokens = {});

  struct Answer {
    std::string text;
    data::FinishReason finish_reason = data::FinishReason::kStop;
    bool interrupted = false;  // `interrupted` ended it; the text is what there was by then
  };

  // The assistant's answer to `message`, handed to `on_text` as it comes; both become part of the conversation. Throws
  // Error if the conversation has grown longer than the model's context, or the template does not allow the message;
  // the conversation is then as it was before.
  Answer say(const std::string& message, const std::function<void(std::string_view)>& on_text,
             const std::function<bool()>& interrupted);

  // Forgets everything but the system message.
  void reset();

  const std::vector<data::ChatMessage>& messages() const { return messages_; }

 private:
  std::shared_ptr<const data::Tokenizer> tokenizer_;
  std::shared_ptr<const data::ChatTemplate> chat_template_;
  nn::GenerateOptions options_;
  std::string system_;
  nn::GenerationEngine engine_;
  std::vector<data::ChatMessage> messages_;
  uint64_t turn_ = 0;  // keys the random numbers; goes on over a reset
};

}  // namespace distill
