// ChatML: <|im_start|>role, a line break, the content, <|im_end|>. Variants differ in the system message they put in
// where a conversation has none, and (Qwen3) in what becomes of reasoning between <think> and </think>.
#include <utility>

#include "data/chat_family.h"
#include "data/jinja_text.h"

namespace distill::data {
namespace {

constexpr std::string_view kOpen = "<|im_start|>";
constexpr std::string_view kClose = "<|im_end|>\n";
constexpr std::string_view kThinkEnd = "</think>";

void append_turn(std::string_view role, std::string_view content, std::string& text) {
  text.append(kOpen).append(role).append("\n").append(content).append(kClose);
}

struct ChatMl {
  std::optional<std::string> default_system;
  std::string generation_prompt;

  void operator()(std::span<const ChatMessage> messages, bool add_generation_prompt, std::string& text) const {
    if (default_system && messages.front().role != "system") append_turn("system", *default_system, text);
    for (const ChatMessage& message : messages) append_turn(message.role, message.content, text);
    if (add_generation_prompt) text += generation_prompt;
  }
};

// Shows reasoning only in what follows the last message of the user.
struct Qwen3 {
  std::string generation_prompt;

  void operator()(std::span<const ChatMessage> messages, bool add_generation_prompt, std::string& text) const {
    const size_t last_query = find_last_query(messages);
    for (size_t i = 0; i < messages.size(); ++i) {
      const ChatMessage& message = messages[i];
      if (message.role != "assistant") {
        append_turn(message.role, message.content, text);
        continue;
      }
      std::string_view content = message.content;
      std::string_view reasoning;
      if (content.find(kThinkEnd) != std::string_view::npos) {
        reasoning = jinja::rstrip(jinja::before_first(content, kThinkEnd), '\n');
        reasoning = jinja::lstrip(jinja::after_last(reasoning, "<think>"), '\n');
        content = jinja::lstrip(jinja::after_last(content, kThinkEnd), '\n');
      }
      text.append(kOpen).append("assistant\n");
      if (i > last_query && (i + 1 == messages.size() || !reasoning.empty())) {
        text.append("<think>\n").append(jinja::strip(reasoning, '\n')).append("\n</think>\n\n");
        content = jinja::lstrip(content, '\n');
      }
      text.append(content).append(kClose);
    }
    if (add_generation_prompt) text += generation_prompt;
  }

 private:
  static size_t find_last_query(std::span<const ChatMessage> messages) {
    for (size_t i = messages.size(); i-- > 0;) {
      const auto& [role, content] = messages[i];
      const bool is_tool_result = content.starts_with("<tool_response>") && content.ends_with("</tool_response>");
      if (role == "user" && !is_tool_result) return i;
    }
    return messages.size() - 1;
  }
};

// {{'<|im_start|>assistant\n...'}}{%endif%} at the end of a template, perhaps with Qwen3's answer to enable_thinking,
// which nobody gives.
std::optional<std::string> generation_prompt(std::string_view printed) {
  constexpr std::string_view kThinking =
      R"({%ifenable_thinkingisdefinedandenable_thinkingisfalse%}{{'<think>\n\n</think>\n\n'}}{%endif%})";
  if (printed.ends_with(kThinking)) printed.remove_suffix(kThinking.size());
  const auto gaps = jinja::match(printed, {R"({{')", R"('}})"});
  if (!gaps) return std::nullopt;
  auto prompt = jinja::unescape(gaps->front());
  if (!prompt || (*prompt != "<|im_start|>assistant\n" && *prompt != "<|im_start|>assistant\n<think>\n")) {
    return std::nullopt;
  }
  return prompt;
}

// One loop that prints every message alike: ChatML, SmolLM2, Qwen2.
std::optional<RecognisedChat> recognise_plain(std::string_view normal) {
  constexpr std::string_view kLoop = "{%formessageinmessages%}";
  constexpr std::string_view kTurn = R"({{'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>\n'}})";
  constexpr std::string_view kGeneration = "{%endfor%}{%ifadd_generation_prompt%}";
  const auto gaps = jinja::match(normal, {kLoop, kTurn, kGeneration, "{%endif%}"});
  if (!gaps || !(*gaps)[1].empty()) return std::nullopt;
  const auto prompt = generation_prompt((*gaps)[2]);
  if (!prompt) return std::nullopt;
  if ((*gaps)[0].empty()) return RecognisedChat{"chatml", ChatMl{std::nullopt, *prompt}};
  const auto system = jinja::match(
      (*gaps)[0],
      {R"({%ifloop.firstandmessages[0].role!='system'%}{{'<|im_start|>system\n)", R"(<|im_end|>\n'}}{%endif%})"});
  if (!system) return std::nullopt;
  const auto text = jinja::unescape(system->front());
  if (!text) return std::nullopt;
  return RecognisedChat{text->find("SmolLM") != std::string::npos ? "smollm2" : "qwen2", ChatMl{text, *prompt}};
}

constexpr std::string_view kSystemFirst =
    R"({%ifmessages[0].role=='system'%}{{'<|im_start|>system\n'+messages[0].content+'<|im_end|>\n'}})";
constexpr std::string_view kUserTurn =
    R"({%if(message.role=='user')or(message.role=='system'andnotloop.first)%}{{'<|im_start|>'+message.role+'\n'+)";

// How Qwen3 prints what the assistant said, once it has split it into reasoning and content.
bool prints_reasoning(std::string_view head, std::string_view loop) {
  const auto has = [](std::string_view text, std::string_view part) { return text.find(part) != text.npos; };
  return has(head, "last_query_index=messages|length-1") &&
         has(head, "{%ifns.multi_step_toolandmessage.role=='user'and") &&
         has(loop, R"(.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n')%})") &&
         has(loop, R"(.split('</think>')[-1].lstrip('\n')%})") &&
         has(loop,
             R"({%ifloop.index0>ns.last_query_index%}{%ifloop.lastor(notloop.lastandreasoning_content)%})"
             R"({{'<|im_start|>'+message.role+'\n<think>\n'+reasoning_content.strip('\n')+'\n</think>\n\n'+content.lstrip('\n')}})"
             R"({%else%}{{'<|im_start|>'+message.role+'\n'+content}}{%endif%})"
             R"({%else%}{{'<|im_start|>'+message.role+'\n'+content}}{%endif%})") &&
         has(loop, R"({{'<|im_end|>\n'}})");
}

// A system message first, then a loop with a branch for each role: Qwen2.5 and Qwen3.
std::optional<RecognisedChat> recognise_qwen(std::string_view normal) {
  const bool has_tools = normal.starts_with("{%iftools%}");
  if (has_tools) {
    const size_t at = normal.find("{%else%}" + std::string(kSystemFirst));
    if (at == std::string_view::npos) return std::nullopt;
    normal.remove_prefix(at + std::string_view("{%else%}").size());
  }
  const auto gaps = jinja::match(
      normal, {kSystemFirst, "{%formessageinmessages%}", "{%endfor%}{%ifadd_generation_prompt%}", "{%endif%}"});
  if (!gaps) return std::nullopt;
  std::string_view head = (*gaps)[0];
  std::string_view loop = (*gaps)[1];
  const auto prompt = generation_prompt((*gaps)[2]);
  if (!prompt) return std::nullopt;

  std::optional<std::string> system;
  constexpr std::string_view kDefaultEnd = R"(<|im_end|>\n'}})";
  if (jinja::take_prefix(head, R"({%else%}{{'<|im_start|>system\n)")) {
    const size_t end = head.find(kDefaultEnd);
    if (end == std::string_view::npos) return std::nullopt;
    system = jinja::unescape(head.substr(0, end));
    if (!system) return std::nullopt;
    head.remove_prefix(end + kDefaultEnd.size());
  }
  if (!jinja::take_prefix(head, "{%endif%}") || (has_tools && !jinja::take_prefix(head, "{%endif%}"))) {
    return std::nullopt;
  }
  // What else comes before the loop may set things, but print nothing.
  if (head.find("{{") != std::string_view::npos) return std::nullopt;

  if (loop.starts_with(R"({%if(message.role=='user')or(message.role=='system'andnotloop.first))"
                       R"(or(message.role=='assistant'andnotmessage.tool_calls)%})"
                       R"({{'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>\n'}})")) {
    return RecognisedChat{"qwen2.5", ChatMl{system, *prompt}};
  }
  std::string_view content = "message.content";
  if (jinja::take_prefix(
          loop, "{%ifmessage.contentisstring%}{%setcontent=message.content%}{%else%}{%setcontent=''%}{%endif%}")) {
    content = "content";
  }
  if (!jinja::take_prefix(loop, kUserTurn) || !jinja::take_prefix(loop, content) ||
      !jinja::take_prefix(loop, R"(+'<|im_end|>\n'}}{%elifmessage.role=='assistant'%})")) {
    return std::nullopt;
  }
  if (!system && prints_reasoning(head, loop)) return RecognisedChat{"qwen3", Qwen3{*prompt}};
  const std::string answer = R"({{'<|im_start|>'+message.role+'\n'+)" + std::string(content) + "}}";
  if (jinja::take_prefix(loop, answer) && loop.find("think>") == std::string_view::npos &&
      loop.find(R"({{'<|im_end|>\n'}})") != std::string_view::npos) {
    return RecognisedChat{"qwen2.5", ChatMl{system, *prompt}};
  }
  return std::nullopt;
}

}  // namespace

std::optional<RecognisedChat> recognise_chatml(std::string_view normal) {
  if (auto chat = recognise_plain(normal)) return chat;
  return recognise_qwen(normal);
}

}  // namespace distill::data
