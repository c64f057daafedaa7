#include "data/conversation_text.h"

#include <string>

#include "core/error.h"

namespace distill::data {
namespace {

// Stands for a message's content while a template is looked at; no text contains it.
constexpr std::string_view kContent = "\x01\x02\x03";

std::optional<std::string> render(const ChatTemplate& chat, const std::vector<ChatMessage>& messages) {
  try {
    return chat.render(messages, /*add_generation_prompt=*/true);
  } catch (const core::Error&) {
    return {};  // roles in an order that the family does not have, or content that is not UTF-8
  }
}

// What the template writes before the first content, between two and behind the last.
std::vector<std::string> marks(std::string_view rendered) {
  std::vector<std::string> marks;
  while (true) {
    const size_t end = rendered.find(kContent);
    marks.emplace_back(rendered.substr(0, end));
    if (end == std::string_view::npos) return marks;
    rendered.remove_prefix(end + kContent.size());
  }
}

// Puts what lies between the marks into the messages.
bool fill(std::vector<ChatMessage>& messages, const std::vector<std::string>& marks, std::string_view text) {
  if (marks.size() != messages.size() + 1 || !text.starts_with(marks.front())) return false;
  text.remove_prefix(marks.front().size());
  if (!text.ends_with(marks.back())) return false;
  text.remove_suffix(marks.back().size());
  for (size_t i = 0; i + 1 < messages.size(); ++i) {
    const size_t end = text.find(marks[i + 1]);
    if (end == std::string_view::npos) return false;
    messages[i].content = text.substr(0, end);
    text.remove_prefix(end + marks[i + 1].size());
  }
  messages.back().content = text;
  return true;
}

}  // namespace

std::optional<std::vector<ChatMessage>> parse_conversation(const ChatTemplate& chat, std::string_view text) {
  // Without a system message first: many templates put in their own, which is not the conversation's. Of several
  // conversations the one of most messages: the others have the template's marks in their contents.
  std::optional<std::vector<ChatMessage>> best;
  for (const bool with_system : {false, true}) {
    std::vector<ChatMessage> messages;
    if (with_system) messages.push_back({"system", std::string(kContent)});
    messages.push_back({"user", std::string(kContent)});
    while (const auto rendered = render(chat, messages)) {
      if (rendered->size() > text.size() + messages.size() * kContent.size()) break;
      std::vector<ChatMessage> found = messages;
      if (fill(found, marks(*rendered), text) && render(chat, found) == text) best = found;
      messages.push_back({"assistant", std::string(kContent)});
      messages.push_back({"user", std::string(kContent)});
    }
    if (best) return best;
  }
  return {};
}

}  // namespace distill::data
