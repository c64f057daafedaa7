#include "distill/remote_capture.h"

#include <deque>
#include <optional>
#include <utility>

#include "core/digest.h"
#include "core/error.h"
#include "distill/trace_collector.h"

namespace distill {
namespace {

// Hands out the missing answers one by one.
class RequestQueue {
 public:
  RequestQueue(TraceCollector& collector, teacher::RemoteApi api, const RemoteText& text, nn::GenerateOptions options)
      : collector_(collector), api_(api), text_(text), options_(std::move(options)) {}

  std::optional<teacher::RemoteRequest> next() {
    while (ready_.empty()) {
      auto missing = collector_.next();
      if (!missing) return std::nullopt;
      add(*missing);
    }
    auto request = std::move(ready_.front());
    ready_.pop_front();
    return request;
  }

 private:
  void add(const TraceCollector::Missing& missing) {
    const data::Prompt& prompt = *missing.prompt;
    teacher::RemoteRequest request{.id = prompt.id, .prompt = {}, .messages = prompt.messages, .options = options_};
    try {
      core::check(
          api_ == teacher::RemoteApi::kCompletions || !prompt.text,
          "prompt \"{}\" is a text to continue, which the chat API has no words for: use --remote-api completions",
          prompt.id);
      request.prompt = data::encode_prompt(prompt, *text_.tokenizer, text_.chat_template.get());
    } catch (const core::UsageError&) {
      throw;
    } catch (const core::Error& error) {
      return collector_.reject(prompt.id, error.what());
    }
    for (const uint32_t sample : missing.samples) {
      request.sample = sample;
      ready_.push_back(request);
    }
  }

  TraceCollector& collector_;
  teacher::RemoteApi api_;
  const RemoteText& text_;
  nn::GenerateOptions options_;
  std::deque<teacher::RemoteRequest> ready_;
};

}  // namespace

data::TraceProvenance describe_teacher(const teacher::RemoteTeacher& teacher, teacher::RemoteApi api,
                                       const RemoteText& text) {
  data::TraceProvenance provenance;
  provenance.teacher = teacher.base_url();
  provenance.weights = core::sha256_hex("remote model " + teacher.model().name);
  provenance.config = core::sha256_hex(api == teacher::RemoteApi::kChat ? "remote chat API" : "remote completions API");
  provenance.tokenizer = text.tokenizer->fingerprint();
  provenance.reasoning = data::find_reasoning_tokens(*text.tokenizer);
  if (text.chat_template) provenance.chat_template = text.chat_template->fingerprint();
  provenance.vocab_size = text.tokenizer->vocab_size();
  return provenance;
}

int32_t remote_alternatives(const data::TargetSpec& targets) {
  if (targets.mode != data::TargetMode::kTopk) {
    core::fail_usage("targets: a remote teacher gives its most probable tokens only: topk:K, not {}",
                     targets.to_string());
  }
  return targets.exact;
}

CaptureSummary capture_remote_traces(teacher::RemoteTeacher& teacher, teacher::RemoteApi api, const RemoteText& text,
                                     std::span<const data::Prompt> prompts, const data::TraceProvenance& provenance,
                                     const std::filesystem::path& directory, int64_t samples) {
  remote_alternatives(provenance.targets);
  if (provenance.sampling.thinking_budget) {
    core::fail_usage("thinking budget: a remote teacher thinks for as long as its server lets it");
  }
  TraceCollector collector(prompts, provenance, text.tokenizer, directory, samples);
  RequestQueue queue(collector, api, text, generate_options(provenance, text.stop_tokens));
  using teacher::AnswerReader;
  using teacher::RemoteRequest;
  const auto outcome = teacher.run(
      [&] { return queue.next(); },
      [&](const RemoteRequest& request, AnswerReader::Answer&& answer) {
        nn::Completion completion{.id = request.id,
                                  .sample = request.sample,
                                  .prompt = request.prompt,
                                  .tokens = std::move(answer.tokens),
                                  .text = {},
                                  .finish_reason = answer.finish_reason,
                                  .log_probability = answer.log_probability};
        completion.text = text.tokenizer->decode(completion.tokens, /*skip_special_tokens=*/true);
        collector.write(std::move(completion), std::move(answer.targets));
      },
      [&](const RemoteRequest& request, const std::string& reason) { collector.reject(request.id, reason); });
  return collector.finish(outcome == teacher::RemoteTeacher::Outcome::kInterrupted);
}

}  // namespace distill
