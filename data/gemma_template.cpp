// Gemma: <start_of_turn>, user or model, trimmed content, <end_of_turn>, with roles that alternate. Gemma 3 puts a
// system message before the first message of the user; Gemma 1 and 2 refuse it.
#include <string>

#include "core/error.h"
#include "data/chat_family.h"
#include "data/jinja_text.h"

namespace distill::data {
namespace {

struct Gemma {
  std::string bos;
  std::optional<std::string> system_error;  // nothing: system messages are taken
  std::string alternate_error;

  void operator()(std::span<const ChatMessage> messages, bool add_generation_prompt, std::string& text) const {
    text += bos;
    std::string prefix;
    if (messages.front().role == "system") {
      core::check(!system_error, "{}", system_error.value_or(""));
      prefix = messages.front().content + "\n\n";
      messages = messages.subspan(1);
    }
    for (size_t i = 0; i < messages.size(); ++i) {
      const auto& [role, content] = messages[i];
      core::check((role == "user") == (i % 2 == 0), "{}", alternate_error);
      text.append("<start_of_turn>").append(role == "assistant" ? "model" : role).append("\n");
      if (i == 0) text += prefix;
      text.append(jinja::strip(content)).append("<end_of_turn>\n");
    }
    if (add_generation_prompt) text += "<start_of_turn>model\n";
  }
};

constexpr std::string_view kRole =
    "')}}{%endif%}{%if(message.role=='assistant')%}{%setrole='model'%}{%else%}{%setrole=message.role%}{%endif%}";
constexpr std::string_view kGeneration =
    R"({%endfor%}{%ifadd_generation_prompt%}{{'<start_of_turn>model\n'}}{%endif%})";

std::optional<RecognisedChat> recognise_2(std::string_view normal, const TemplateTokens& tokens) {
  const auto gaps = jinja::match(
      normal,
      {"{{bos_token}}{%ifmessages[0].role=='system'%}{{raise_exception('",
       "')}}{%endif%}{%formessageinmessages%}{%if(message.role=='user')!=(loop.index0%2==0)%}{{raise_exception('",
       kRole, R"({{'<start_of_turn>'+role+'\n'+message.content|trim+'<end_of_turn>\n'}})", kGeneration});
  if (!gaps || !(*gaps)[2].empty() || !(*gaps)[3].empty()) return std::nullopt;
  const auto system_error = jinja::unescape((*gaps)[0]);
  const auto alternate_error = jinja::unescape((*gaps)[1]);
  if (!system_error || !alternate_error) return std::nullopt;
  return RecognisedChat{"gemma", Gemma{tokens.bos, *system_error, *alternate_error}};
}

std::optional<RecognisedChat> recognise_3(std::string_view normal, const TemplateTokens& tokens) {
  const auto gaps = jinja::match(
      normal,
      {"{{bos_token}}{%ifmessages[0].role=='system'%}", R"({%setfirst_user_prefix=messages[0].content+'\n\n'%})",
       "{%setloop_messages=messages[1:]%}{%else%}{%setfirst_user_prefix=''%}{%setloop_messages=messages%}{%endif%}"
       "{%formessageinloop_messages%}{%if(message.role=='user')!=(loop.index0%2==0)%}{{raise_exception('",
       kRole, R"({{'<start_of_turn>'+role+'\n'+(first_user_prefixifloop.firstelse'')}})", "{{message.content|trim}}",
       R"({{'<end_of_turn>\n'}})", kGeneration});
  if (!gaps || !(*gaps)[3].empty() || !(*gaps)[6].empty()) return std::nullopt;
  const auto alternate_error = jinja::unescape((*gaps)[2]);
  if (!alternate_error) return std::nullopt;
  return RecognisedChat{"gemma3", Gemma{tokens.bos, std::nullopt, *alternate_error}};
}

}  // namespace

std::optional<RecognisedChat> recognise_gemma(std::string_view normal, const TemplateTokens& tokens) {
  if (auto chat = recognise_2(normal, tokens)) return chat;
  return recognise_3(normal, tokens);
}

}  // namespace distill::data
