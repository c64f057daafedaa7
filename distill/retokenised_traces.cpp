#include "distill/retokenised_traces.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "core/cpu_count.h"
#include "core/error.h"
#include "core/log.h"
#include "core/shared_loop.h"
#include "data/conversation_text.h"
#include "data/reasoning.h"

namespace distill {
namespace {

// The student's tokens that end an answer, first the one that it should learn to write: what its chat template puts
// behind one, which need not be the first that its files name.
std::vector<int32_t> student_ends(const TextTools& student, bool conversations) {
  std::vector<int32_t> ends = student.stop_tokens;
  if (!conversations) return ends;
  constexpr std::string_view kAnswer = "\x01\x02\x03";
  const std::vector<data::ChatMessage> messages{{"user", "a"}, {"assistant", std::string(kAnswer)}};
  const std::string text = student.chat_template->render(messages, /*add_generation_prompt=*/false);
  const std::string behind = text.substr(text.find(kAnswer) + kAnswer.size());
  const auto tokens = student.tokenizer->encode(behind, /*add_special_tokens=*/false);
  if (tokens.empty() || !student.tokenizer->is_special(tokens.front())) return ends;
  std::erase(ends, tokens.front());
  ends.insert(ends.begin(), tokens.front());
  return ends;
}

data::TraceProvenance provenance_of(const data::TraceProvenance& traces, const TextTools& student) {
  data::TraceProvenance provenance = traces;
  provenance.tokenizer = student.tokenizer->fingerprint();
  if (!traces.chat_template.empty()) provenance.chat_template = student.chat_template->fingerprint();
  provenance.vocab_size = student.tokenizer->vocab_size();
  provenance.reasoning = data::find_reasoning_tokens(*student.tokenizer);
  provenance.hidden_states.reset();
  return provenance;
}

TextTools checked(TextTools tools, const data::TraceProvenance& traces, std::string_view whose) {
  core::check(traces.chat_template.empty() || tools.chat_template != nullptr,
              "the traces hold conversations, but the {} has no chat template to render them with", whose);
  return tools;
}

}  // namespace

RetokenisedTraces::RetokenisedTraces(std::shared_ptr<const data::TraceSource> traces, TextTools teacher,
                                     TextTools student, bool distributions)
    : traces_(std::move(traces)),
      teacher_(checked(std::move(teacher), traces_->provenance(), "teacher")),
      student_(checked(std::move(student), traces_->provenance(), "student")),
      alignment_({.tokenizer = teacher_.tokenizer, .ends = teacher_.stop_tokens},
                 {.tokenizer = student_.tokenizer,
                  .ends = student_ends(student_, !traces_->provenance().chat_template.empty())}),
      distributions_(distributions),
      provenance_(provenance_of(traces_->provenance(), student_)),
      lengths_(traces_->size()) {
  measure();
}

void RetokenisedTraces::measure() {
  size_t left_out = 0;
  std::mutex mutex;
  std::string reason;  // of one that was left out
  core::for_each_index(lengths_.size(), static_cast<size_t>(core::available_cpus()), [&](size_t i) {
    const auto [document, refusal] = retokenise(traces_->read_document(i));
    lengths_[i] = {document.prompt_length, document.completion_length()};
    if (refusal.empty()) return;
    lengths_[i] = {1, 0};
    const std::lock_guard lock(mutex);
    ++left_out;
    reason = refusal;
  });
  core::check(left_out < lengths_.size(), "no document can be carried over to the student's tokenizer: {}", reason);
  if (left_out > 0) {
    core::log::warn("{} of {} documents cannot be carried over to the student's tokenizer and are left out: {}",
                    left_out, lengths_.size(), reason);
  }
}

std::optional<std::vector<int32_t>> RetokenisedTraces::prompt(std::span<const int32_t> tokens) const {
  if (teacher_.chat_template != nullptr && !traces_->provenance().chat_template.empty()) {
    const auto messages = data::parse_conversation(*teacher_.chat_template, teacher_.tokenizer->decode(tokens));
    if (messages) {
      return student_.tokenizer->encode(student_.chat_template->render(*messages, /*add_generation_prompt=*/true),
                                        /*add_special_tokens=*/false);
    }
  }
  // Plain text behind what a tokenizer puts first.
  while (!tokens.empty() && teacher_.tokenizer->is_special(tokens.front())) tokens = tokens.subspan(1);
  if (std::ranges::any_of(tokens, [&](int32_t id) { return teacher_.tokenizer->is_special(id); })) return {};
  return student_.tokenizer->encode(teacher_.tokenizer->decode(tokens));
}

RetokenisedTraces::Retokenised RetokenisedTraces::retokenise(const data::TraceDocument& document) const {
  Retokenised result{.document = document, .refusal = {}};
  auto tokens = prompt(document.prompt());
  const auto completion = alignment_.encode(alignment_.text(document.completion()));
  if (!tokens) result.refusal = "its prompt has special tokens, but is no conversation of the teacher's chat template";
  if (completion.empty() || (tokens && tokens->empty())) result.refusal = "its prompt or its answer is empty";
  if (!result.refusal.empty()) return result;
  result.document.prompt_length = static_cast<int32_t>(tokens->size());
  tokens->insert(tokens->end(), completion.begin(), completion.end());
  result.document.tokens = *std::move(tokens);
  return result;
}

data::TraceDocument RetokenisedTraces::required(size_t index, Retokenised&& result) {
  core::check(result.refusal.empty(), "document {} cannot be carried over to the student's tokenizer: {}", index,
              result.refusal);
  return std::move(result.document);
}

data::TraceDocument RetokenisedTraces::read_document(size_t index) const {
  return required(index, retokenise(traces_->read_document(index)));
}

data::Trace RetokenisedTraces::read(size_t index) const {
  data::Trace result;
  if (distributions_) {
    const data::Trace trace = traces_->read(index);
    result.document = required(index, retokenise(trace.document));
    alignment_.carry(trace.document.completion(), trace.targets, result.document.completion(), result.targets);
  } else {
    result.document = read_document(index);
    data::TokenAlignment::carry_text(result.document.completion(), result.targets);
  }
  return result;
}

}  // namespace distill
