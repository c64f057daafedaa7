#include "data/prompts.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "core/config.h"
#include "core/error.h"
#include "core/text_file.h"

namespace distill::data {
namespace {

constexpr size_t kLongestId = 512;  // bytes

std::string read_id(core::ConfigReader& reader) {
  const auto value = reader.find<nlohmann::json>("id");
  if (!value) reader.reject("id", "is missing; it must name the prompt");
  if (!value->is_string() && !value->is_number_integer()) {
    reader.reject("id", fmt::format("expected text or an integer, found {}", value->dump()));
  }
  std::string id = value->is_string() ? value->get<std::string>() : value->dump();
  if (id.empty()) reader.reject("id", "is empty");
  if (id.size() > kLongestId) reader.reject("id", fmt::format("is longer than {} bytes", kLongestId));
  if (std::ranges::any_of(id, [](unsigned char c) { return c < 0x20; })) {
    reader.reject("id", "contains control characters");
  }
  return id;
}

std::vector<ChatMessage> read_messages(core::ConfigReader& reader, const nlohmann::json& array) {
  if (!array.is_array()) reader.reject("messages", fmt::format("expected a list, found {}", array.dump()));
  if (array.empty()) reader.reject("messages", "is empty");
  std::vector<ChatMessage> messages;
  for (const auto& item : array) {
    core::ConfigReader message(item, fmt::format("{}: messages[{}]", reader.location(), messages.size()));
    messages.push_back(
        {.role = message.require<std::string>("role"), .content = message.require<std::string>("content")});
    message.finish();
    if (messages.back().role.empty()) message.reject("role", "is empty");
  }
  if (messages.back().role == "assistant") {
    reader.reject("messages", "the last one is the assistant's: there is nothing to answer");
  }
  if (messages.back().content.empty()) reader.reject("messages", "the last one is empty");
  return messages;
}

Prompt read_prompt(nlohmann::json&& object, size_t line) {
  core::ConfigReader reader(std::move(object), "prompt");
  Prompt prompt{.id = read_id(reader),
                .text = reader.find<std::string>("prompt"),
                .messages = {},
                .answer = {},
                .verifier = {},
                .line = line};
  const auto messages = reader.find<nlohmann::json>("messages");
  if (const auto answer = reader.find<nlohmann::json>("answer")) {
    if (!answer->is_string() && !answer->is_number()) {
      reader.reject("answer", fmt::format("expected text or a number, found {}", answer->dump()));
    }
    prompt.answer = answer->is_string() ? answer->get<std::string>() : answer->dump();
  }
  prompt.verifier = reader.get<std::string>("verifier", "");
  reader.finish();
  if (prompt.text.has_value() == messages.has_value()) {
    reader.reject(prompt.text ? "messages" : "prompt", "expected either \"prompt\" or \"messages\"");
  }
  if (messages) prompt.messages = read_messages(reader, *messages);
  if (prompt.text && prompt.text->empty()) reader.reject("prompt", "is empty");
  if (!prompt.verifier.empty() && !prompt.answer) reader.reject("verifier", "needs an \"answer\" to check against");
  return prompt;
}

}  // namespace

std::vector<Prompt> read_prompts(const std::filesystem::path& path) {
  std::vector<Prompt> prompts;
  std::unordered_map<std::string, size_t> line_of;
  core::for_each_json_line(path, [&](size_t line, nlohmann::json&& object) {
    prompts.push_back(read_prompt(std::move(object), line));
    const auto [first, is_new] = line_of.emplace(prompts.back().id, line);
    core::check(is_new, "prompt: id: \"{}\" is the id of line {} too", first->first, first->second);
  });
  core::check(!prompts.empty(), "{}: there are no prompts in it", path.string());
  return prompts;
}

std::vector<int32_t> encode_prompt(const Prompt& prompt, const Tokenizer& tokenizer,
                                   const ChatTemplate* chat_template) {
  if (prompt.text) return tokenizer.encode(*prompt.text);
  core::check(chat_template != nullptr,
              "prompt \"{}\" is a conversation, but the model has no chat template: name one with --chat-template",
              prompt.id);
  const std::string text = core::with_context(fmt::format("prompt \"{}\"", prompt.id), [&] {
    return chat_template->render(prompt.messages, /*add_generation_prompt=*/true);
  });
  return tokenizer.encode(text, /*add_special_tokens=*/false);
}

}  // namespace distill::data
