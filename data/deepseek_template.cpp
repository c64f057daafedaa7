// DeepSeek-V3 and R1: system messages go to the front; R1 leaves reasoning out of earlier answers.
#include "data/chat_family.h"
#include "data/jinja_text.h"

namespace distill::data {
namespace {

constexpr std::string_view kAssistant = "<｜Assistant｜>";
constexpr std::string_view kEnd = "<｜end▁of▁sentence｜>";

struct DeepSeek {
  std::string bos;
  bool joins_systems;  // with blank lines; otherwise the last system message counts
  bool drops_reasoning;
  std::string generation_prompt;

  void operator()(std::span<const ChatMessage> messages, bool add_generation_prompt, std::string& text) const {
    std::string system;
    bool is_first = true;
    for (const ChatMessage& message : messages) {
      if (message.role != "system") continue;
      if (joins_systems) {
        system.append(is_first ? "" : "\n\n").append(message.content);
      } else {
        system = message.content;
      }
      is_first = false;
    }
    text.append(bos).append(system);
    for (const ChatMessage& message : messages) {
      if (message.role == "user") text.append("<｜User｜>").append(message.content);
      if (message.role != "assistant") continue;
      const std::string_view content = message.content;
      text.append(kAssistant).append(drops_reasoning ? jinja::after_last(content, "</think>") : content).append(kEnd);
    }
    if (add_generation_prompt) text += generation_prompt;
  }
};

}  // namespace

std::optional<RecognisedChat> recognise_deepseek(std::string_view normal, const TemplateTokens& tokens) {
  const auto gaps = jinja::match(
      normal,
      {"{%setns=namespace(", ")%}{%formessageinmessages%}{%ifmessage.role=='system'%}",
       "{%endif%}{%endfor%}{{bos_token", "ns.system_prompt}}{%formessageinmessages%}{%ifmessage.role=='user'%}",
       "{{'<｜User｜>'+message.content}}{%endif%}", "{%ifadd_generation_promptandnotns.is_tool%}{{'", "'}}{%endif%}"});
  if (!gaps) return std::nullopt;
  const std::string_view system = (*gaps)[1];
  const std::string_view joint = (*gaps)[2];
  const std::string_view user = (*gaps)[3];
  const std::string_view answers = (*gaps)[4];
  const auto prompt = jinja::unescape((*gaps)[5]);

  const bool joins = system == R"({%ifns.is_first_sp%}{%setns.system_prompt=ns.system_prompt+message.content%})"
                               R"({%setns.is_first_sp=false%}{%else%})"
                               R"({%setns.system_prompt=ns.system_prompt+'\n\n'+message.content%}{%endif%})";
  if (!joins && system != "{%setns.system_prompt=message.content%}") return std::nullopt;
  if (joint != "}}{{" && joint != "+") return std::nullopt;
  if (!user.empty() && user != "{%setns.is_tool=false%}") return std::nullopt;
  if (!prompt || (*prompt != kAssistant && *prompt != std::string(kAssistant) + "<think>\n")) return std::nullopt;

  const auto has = [&](std::string_view part) { return answers.find(part) != std::string_view::npos; };
  const bool drops_reasoning =
      has("{%setcontent=message.content%}{%if'</think>'incontent%}{%setcontent=content.split('</think>')[-1]%}{%endif%}"
          "{{'<｜Assistant｜>'+content+'<｜end▁of▁sentence｜>'}}");
  const bool keeps_reasoning = has("{{'<｜Assistant｜>'+message.content+'<｜end▁of▁sentence｜>'}}");
  // </think> in what is printed belongs to versions that switch thinking on and off.
  if (drops_reasoning == keeps_reasoning || (keeps_reasoning && has("</think>"))) return std::nullopt;
  return RecognisedChat{drops_reasoning ? "deepseek-r1" : "deepseek-v3",
                        DeepSeek{tokens.bos, joins, drops_reasoning, *prompt}};
}

}  // namespace distill::data
