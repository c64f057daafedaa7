// Llama-3: a header with the role, two line breaks, the trimmed content, <|eot_id|>. From 3.1 on a system message is
// always there and tells two dates.
#include <chrono>
#include <ctime>

#include "core/error.h"
#include "data/chat_family.h"
#include "data/jinja_text.h"

namespace distill::data {
namespace {

constexpr std::string_view kGenerationPrompt = "<|start_header_id|>assistant<|end_header_id|>\n\n";

void append_turn(std::string_view role, std::string_view content, std::string& text) {
  text.append("<|start_header_id|>").append(role).append("<|end_header_id|>\n\n");
  text.append(jinja::strip(content)).append("<|eot_id|>");
}

struct Llama30 {
  std::string bos;
  bool always_prompts;  // as the template of the first release does

  void operator()(std::span<const ChatMessage> messages, bool add_generation_prompt, std::string& text) const {
    text += bos;
    for (const ChatMessage& message : messages) append_turn(message.role, message.content, text);
    if (add_generation_prompt || always_prompts) text += kGenerationPrompt;
  }
};

// strftime("%d %b %Y") of the local time in English, as transformers offers it to templates.
std::string today() {
  constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm local{};
  core::check(::localtime_r(&now, &local) != nullptr, "the local time cannot be told");
  return fmt::format("{:02} {} {}", local.tm_mday, kMonths[local.tm_mon], local.tm_year + 1900);
}

struct Llama31 {
  std::string bos;
  std::string knowledge_date;
  std::optional<std::string> date;  // nothing: today's

  void operator()(std::span<const ChatMessage> messages, bool add_generation_prompt, std::string& text) const {
    std::string_view system;
    if (messages.front().role == "system") {
      system = jinja::strip(messages.front().content);
      messages = messages.subspan(1);
    }
    text.append(bos).append("<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: ");
    text.append(knowledge_date).append("\nToday Date: ").append(date ? *date : today()).append("\n\n");
    text.append(system).append("<|eot_id|>");
    for (const ChatMessage& message : messages) append_turn(message.role, message.content, text);
    if (add_generation_prompt) text += kGenerationPrompt;
  }
};

std::optional<RecognisedChat> recognise_30(std::string_view normal, const TemplateTokens& tokens) {
  const auto gaps = jinja::match(
      normal,
      {R"({%setloop_messages=messages%}{%formessageinloop_messages%}{%setcontent='<|start_header_id|>'+message.role+'<|end_header_id|>\n\n'+message.content|trim+'<|eot_id|>'%}{%ifloop.index0==0%}{%setcontent=bos_token+content%}{%endif%}{{content}}{%endfor%})",
       ""});
  if (!gaps) return std::nullopt;
  constexpr std::string_view kPrompt = R"({{'<|start_header_id|>assistant<|end_header_id|>\n\n'}})";
  const bool always = gaps->front() == kPrompt;
  if (!always && gaps->front() != "{%ifadd_generation_prompt%}" + std::string(kPrompt) + "{%endif%}") {
    return std::nullopt;
  }
  return RecognisedChat{"llama3", Llama30{tokens.bos, always}};
}

std::optional<RecognisedChat> recognise_31(std::string_view normal, const TemplateTokens& tokens) {
  const auto gaps = jinja::match(
      normal,
      {"{{bos_token}}", "{%ifnotdate_stringisdefined%}",
       "{%ifmessages[0].role=='system'%}{%setsystem_message=messages[0].content|trim%}{%setmessages=messages[1:]%}"
       "{%else%}{%setsystem_message=''%}{%endif%}",
       R"({{'<|start_header_id|>system<|end_header_id|>\n\n'}})",
       "{{'Cutting Knowledge Date: ", R"(\n'}}{{'Today Date: '+date_string+'\n\n'}})",
       "{{system_message}}{{'<|eot_id|>'}}", "{%formessageinmessages%}",
       R"({{'<|start_header_id|>'+message.role+'<|end_header_id|>\n\n'+message.content|trim+'<|eot_id|>'}})",
       R"({%endfor%}{%ifadd_generation_prompt%}{{'<|start_header_id|>assistant<|end_header_id|>\n\n'}}{%endif%})"});
  if (!gaps) return std::nullopt;
  // Between the two conditions on tools nothing else may be printed before the system message.
  const std::string_view for_plain_messages = (*gaps)[7];
  if (!for_plain_messages.empty() &&
      for_plain_messages != "{%ifnot(message.role=='ipython'ormessage.role=='tool'or'tool_calls'inmessage)%}") {
    return std::nullopt;
  }
  const auto knowledge_date = jinja::unescape((*gaps)[4]);
  std::string_view dates = (*gaps)[1];
  constexpr std::string_view kNow = "{%ifstrftime_nowisdefined%}{%setdate_string=strftime_now('%d %b %Y')%}{%else%}";
  const bool is_today = dates.starts_with(kNow);
  if (is_today) dates.remove_prefix(kNow.size());
  constexpr std::string_view kSet = "{%setdate_string='";
  const size_t end = dates.find("'%}{%endif%}");
  if (!knowledge_date || !dates.starts_with(kSet) || end == std::string_view::npos) return std::nullopt;
  auto date = jinja::unescape(dates.substr(kSet.size(), end - kSet.size()));
  if (!date) return std::nullopt;
  if (is_today) date.reset();
  return RecognisedChat{is_today ? "llama3.2" : "llama3.1", Llama31{tokens.bos, *knowledge_date, date}};
}

}  // namespace

std::optional<RecognisedChat> recognise_llama3(std::string_view normal, const TemplateTokens& tokens) {
  if (auto chat = recognise_30(normal, tokens)) return chat;
  return recognise_31(normal, tokens);
}

}  // namespace distill::data
