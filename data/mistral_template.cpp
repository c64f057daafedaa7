// Mistral: [INST] user [/INST] answer </s>, with roles that alternate. Versions differ in spaces, in whether they trim
// answers, and in which of the user's messages the system message is put before (none, the first or the last).
#include <string>

#include "core/error.h"
#include "data/chat_family.h"
#include "data/jinja_text.h"

namespace distill::data {
namespace {

enum class SystemPlace { kNowhere, kFirst, kLast };

struct Mistral {
  std::string bos;
  std::string open, close;  // around what the user says
  std::string before_answer, after_answer;
  bool trims_answer = false;
  SystemPlace system_place = SystemPlace::kNowhere;
  bool checks_turns_first = false;
  std::string alternate_error, role_error;

  void operator()(std::span<const ChatMessage> messages, bool, std::string& text) const {
    std::optional<std::string_view> system;
    if (system_place != SystemPlace::kNowhere && messages.front().role == "system") {
      system = messages.front().content;
      messages = messages.subspan(1);
    }
    const auto check_turn = [&](size_t i) {
      core::check((messages[i].role == "user") == (i % 2 == 0), "{}", alternate_error);
    };
    for (size_t i = 0; checks_turns_first && i < messages.size(); ++i) check_turn(i);
    text += bos;
    for (size_t i = 0; i < messages.size(); ++i) {
      const auto& [role, content] = messages[i];
      check_turn(i);
      if (role == "user") {
        text += open;
        if (system && i == (system_place == SystemPlace::kFirst ? 0 : messages.size() - 1)) {
          text.append(*system).append("\n\n");
        }
        text.append(content).append(close);
      } else {
        core::check(role == "assistant", "{}", role_error);
        text.append(before_answer).append(trims_answer ? jinja::strip(content) : content).append(after_answer);
      }
    }
  }
};

// [' '+]message.content[|trim]+eos_token[+' ']
bool read_answer(std::string_view expression, const TemplateTokens& tokens, Mistral& mistral) {
  if (jinja::take_prefix(expression, "' '+")) mistral.before_answer = " ";
  if (!jinja::take_prefix(expression, "message.content")) return false;
  mistral.trims_answer = jinja::take_prefix(expression, "|trim");
  if (!jinja::take_prefix(expression, "+eos_token")) return false;
  mistral.after_answer = tokens.eos;
  if (jinja::take_prefix(expression, "+' '")) mistral.after_answer += ' ';
  return expression.empty();
}

// {{'[INST] '+message.content+' [/INST]'}}, and before it the same with a system message where `when` says.
bool read_user(std::string_view branch, std::string_view when, Mistral& mistral) {
  if (when.empty()) {
    const auto gaps = jinja::match(branch, {"{{'", "'+message.content+'", "'}}"});
    if (!gaps) return false;
    mistral.open = jinja::unescape((*gaps)[0]).value_or("");
    mistral.close = jinja::unescape((*gaps)[1]).value_or("");
  } else {
    const auto gaps = jinja::match(branch, {when, R"({{')", R"('+system_message+'\n\n'+message.content+')",
                                            "'}}{%else%}{{'", "'+message.content+'", "'}}{%endif%}"});
    if (!gaps || !(*gaps)[0].empty() || (*gaps)[1] != (*gaps)[3] || (*gaps)[2] != (*gaps)[4]) return false;
    mistral.open = jinja::unescape((*gaps)[1]).value_or("");
    mistral.close = jinja::unescape((*gaps)[2]).value_or("");
  }
  return mistral.open.find("[INST]") != std::string::npos && mistral.close.find("[/INST]") != std::string::npos;
}

constexpr std::string_view kTakeSystem =
    "{%ifmessages[0].role=='system'%}{%setsystem_message=messages[0].content%}{%setloop_messages=messages[1:]%}"
    "{%else%}{%setloop_messages=messages%}{%endif%}";
constexpr std::string_view kAlternate = "{%if(message.role=='user')!=(loop.index0%2==0)%}{{raise_exception('";
constexpr std::string_view kUser = "')}}{%endif%}{%ifmessage.role=='user'%}";
constexpr std::string_view kAnswer = "{%elifmessage.role=='assistant'%}{{";
constexpr std::string_view kOtherRole = "}}{%else%}{{raise_exception('";
constexpr std::string_view kEnd = "')}}{%endif%}{%endfor%}";

// One loop: the first templates (without a system message), and those of 7B v0.2 and Mixtral (with one).
std::optional<Mistral> read_simple(std::string_view normal, const TemplateTokens& tokens) {
  const bool has_system = jinja::take_prefix(normal, kTakeSystem);
  const std::string begin = has_system ? "{{bos_token}}{%formessageinloop_messages%}" + std::string(kAlternate)
                                       : "{{bos_token}}{%formessageinmessages%}" + std::string(kAlternate);
  const auto gaps = jinja::match(normal, {begin, kUser, kAnswer, kOtherRole, kEnd});
  if (!gaps) return std::nullopt;
  Mistral mistral;
  mistral.bos = tokens.bos;
  mistral.system_place = has_system ? SystemPlace::kFirst : SystemPlace::kNowhere;
  const auto alternate_error = jinja::unescape((*gaps)[0]);
  const auto role_error = jinja::unescape((*gaps)[3]);
  if (!alternate_error || !role_error || !read_answer((*gaps)[2], tokens, mistral) ||
      !read_user((*gaps)[1], has_system ? "{%ifloop.firstandsystem_messageisdefined%}" : "", mistral)) {
    return std::nullopt;
  }
  mistral.alternate_error = *alternate_error;
  mistral.role_error = *role_error;
  return mistral;
}

// Roles are checked in a loop of their own, and there are branches for tools: 7B v0.3, Nemo, Large.
std::optional<Mistral> read_with_tools(std::string_view normal, const TemplateTokens& tokens) {
  constexpr std::string_view kWhen = "{%ifloop.lastandsystem_messageisdefined%}";
  const auto gaps =
      jinja::match(normal, {kTakeSystem, "{%setns=namespace()%}{%setns.index=0%}{%formessageinloop_messages%}{%ifnot(",
                            ")%}{%if(message.role=='user')!=(ns.index%2==0)%}{{raise_exception('",
                            "')}}{%endif%}{%setns.index=ns.index+1%}{%endif%}{%endfor%}{{bos_token}}"
                            "{%formessageinloop_messages%}{%ifmessage.role=='user'%}",
                            kWhen, "{%elif", kAnswer.substr(std::string_view("{%elif").size()), "}}",
                            "{%else%}{{raise_exception('", kEnd});
  if (!gaps) return std::nullopt;
  Mistral mistral;
  mistral.bos = tokens.bos;
  mistral.system_place = SystemPlace::kLast;
  mistral.checks_turns_first = true;
  const auto alternate_error = jinja::unescape((*gaps)[2]);
  const auto role_error = jinja::unescape((*gaps)[8]);
  const std::string user = std::string(kWhen) + std::string((*gaps)[4]);
  if (!alternate_error || !role_error || !read_answer((*gaps)[6], tokens, mistral) ||
      !read_user(user, kWhen, mistral)) {
    return std::nullopt;
  }
  mistral.alternate_error = *alternate_error;
  mistral.role_error = *role_error;
  return mistral;
}

}  // namespace

std::optional<RecognisedChat> recognise_mistral(std::string_view normal, const TemplateTokens& tokens) {
  if (auto simple = read_simple(normal, tokens)) return RecognisedChat{"mistral-v1", *std::move(simple)};
  auto mistral = read_with_tools(normal, tokens);
  if (!mistral) return std::nullopt;
  return RecognisedChat{mistral->open.ends_with(' ') ? "mistral-v3" : "mistral-nemo", *std::move(mistral)};
}

}  // namespace distill::data
