// Chat templates backwards: the messages behind a text that a template rendered.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "data/chat_template.h"

namespace distill::data {

// Messages that `chat` renders as exactly this text, ending where the assistant's answer begins: questions of the user
// with the assistant's answers between them, perhaps behind a system message. Nothing if there are none. Where a
// message's content reads like the template's own marks, the messages may not be those that were rendered; the text is.
std::optional<std::vector<ChatMessage>> parse_conversation(const ChatTemplate& chat, std::string_view text);

}  // namespace distill::data
