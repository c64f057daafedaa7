#include "distill/conversation.h"

#include <optional>
#include <utility>

#include "core/error.h"

namespace distill {

Conversation::Conversation(nn::CausalLM& model, std::shared_ptr<const data::Tokenizer> tokenizer,
                           std::shared_ptr<const data::ChatTemplate> chat_template, nn::GenerateOptions options,
                           std::string system, std::optional<int64_t> draft_tokens)
    : tokenizer_(std::move(tokenizer)),
      chat_template_(std::move(chat_template)),
      options_(std::move(options)),
      system_(std::move(system)),
      engine_(model, tokenizer_, {.max_sequences = 1, .draft_tokens = draft_tokens}) {
  reset();
}

void Conversation::reset() {
  messages_.clear();
  if (!system_.empty()) messages_.push_back({.role = "system", .content = system_});
}

Conversation::Answer Conversation::say(const std::string& message, const std::function<void(std::string_view)>& on_text,
                                       const std::function<bool()>& interrupted) {
  const size_t before = messages_.size();
  messages_.push_back({.role = "user", .content = message});
  Answer answer;
  try {
    std::optional<nn::GenerationRequest> request = nn::GenerationRequest{
        .id = fmt::format("turn {}", ++turn_),
        .prompt = tokenizer_->encode(chat_template_->render(messages_, /*add_generation_prompt=*/true),
                                     /*add_special_tokens=*/false),
        .options = options_,
    };
    const auto outcome =
        engine_.run([&] { return std::exchange(request, std::nullopt); },
                    [&](nn::Completion&& completion) { answer.finish_reason = completion.finish_reason; },
                    {.on_text =
                         [&](std::string_view, uint32_t, std::string_view text) {
                           answer.text += text;
                           on_text(text);
                         },
                     .interrupted = interrupted});
    answer.interrupted = outcome == nn::GenerationEngine::Outcome::kInterrupted;
  } catch (...) {
    messages_.resize(before);
    throw;
  }
  messages_.push_back({.role = "assistant", .content = answer.text});
  return answer;
}

}  // namespace distill
