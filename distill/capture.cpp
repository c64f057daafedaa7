#include "distill/capture.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/progress.h"
#include "data/target_capture.h"
#include "data/trace_format.h"
#include "distill/trace_collector.h"
#include "nn/generation_engine.h"

namespace distill {
namespace {

// One capture while it runs.
class Capture {
 public:
  Capture(const CaptureTeacher& teacher, std::span<const data::Prompt> prompts, const data::TraceProvenance& provenance,
          const CaptureOptions& options)
      : teacher_(teacher),
        provenance_(provenance),
        generate_options_(generate_options(provenance, teacher.stop_tokens)),
        collector_(prompts, provenance, teacher.tokenizer, options.directory, options.samples),
        engine_(teacher.model, teacher.tokenizer,
                {.max_sequences = options.batch,
                 .cache_tokens = options.cache_tokens,
                 .draft_tokens = options.draft_tokens}) {}

  CaptureSummary run();

 private:
  // What is kept of an unfinished answer.
  struct Evidence {
    data::TargetCapture targets;
    std::vector<std::byte> hidden_states;
  };
  using Rows = std::span<const nn::LogitsRow>;

  std::optional<nn::GenerationRequest> next_request();
  // body(row, its answer's evidence) for every row, on all threads.
  template <typename Body>
  void for_each_row(Rows rows, const Body& body);
  void keep_targets(const at::Tensor& logits, Rows rows);
  void keep_hidden_states(const at::Tensor& states, Rows rows);

  const CaptureTeacher& teacher_;
  const data::TraceProvenance& provenance_;
  nn::GenerateOptions generate_options_;
  TraceCollector collector_;
  nn::GenerationEngine engine_;
  std::map<data::TraceKey, Evidence> evidence_;
};

// The next prompt with answers still to be made.
std::optional<nn::GenerationRequest> Capture::next_request() {
  while (auto missing = collector_.next()) {
    const data::Prompt& prompt = *missing->prompt;
    nn::GenerationRequest request{
        .id = prompt.id, .prompt = {}, .samples = std::move(missing->samples), .options = generate_options_};
    try {
      request.prompt = data::encode_prompt(prompt, *teacher_.tokenizer, teacher_.chat_template.get());
      engine_.check(request);
    } catch (const core::UsageError&) {
      throw;
    } catch (const core::Error& error) {
      collector_.reject(prompt.id, error.what());
      continue;
    }
    for (const uint32_t sample : request.samples) {
      const data::TraceKey key{prompt.id, sample};
      evidence_.try_emplace(key, Evidence{.targets = {provenance_, key}, .hidden_states = {}});
    }
    return request;
  }
  return std::nullopt;
}

template <typename Body>
void Capture::for_each_row(Rows rows, const Body& body) {
  std::vector<Evidence*> outputs;
  for (const auto& row : rows) outputs.push_back(&evidence_.at({std::string(row.id), row.sample}));
  at::parallel_for(0, static_cast<int64_t>(rows.size()), 1, [&](int64_t begin, int64_t end) {
    for (auto row = static_cast<size_t>(begin); row < static_cast<size_t>(end); ++row) {
      core::with_context(fmt::format("prompt \"{}\"", rows[row].id), [&] { body(row, *outputs[row]); });
    }
  });
}

void Capture::keep_targets(const at::Tensor& logits, Rows rows) {
  const auto vocab = static_cast<size_t>(logits.size(1));
  const auto* values = logits.const_data_ptr<float>();
  for_each_row(rows, [&](size_t row, Evidence& evidence) { evidence.targets.add({values + row * vocab, vocab}); });
}

void Capture::keep_hidden_states(const at::Tensor& states, Rows rows) {
  const at::Tensor values = states.to(at::kFloat).contiguous();  // [rows, layers, hidden]
  const auto size = static_cast<size_t>(values.size(1) * values.size(2));
  const auto* from = values.const_data_ptr<float>();
  for_each_row(rows, [&](size_t row, Evidence& evidence) {
    provenance_.hidden_states->encode({from + row * size, size}, evidence.hidden_states);
  });
}

CaptureSummary Capture::run() {
  nn::EngineHooks hooks;
  hooks.on_logits = [&](const at::Tensor& logits, Rows rows) { keep_targets(logits, rows); };
  if (provenance_.hidden_states) {
    hooks.hidden_layers = provenance_.hidden_states->layers;
    hooks.on_hidden_states = [&](const at::Tensor& states, Rows rows) { keep_hidden_states(states, rows); };
  }
  const auto outcome = engine_.run([&] { return next_request(); },
                                   [&](nn::Completion&& completion) {
                                     auto evidence = evidence_.extract({completion.id, completion.sample});
                                     collector_.write(std::move(completion), evidence.mapped().targets.finish(),
                                                      std::move(evidence.mapped().hidden_states));
                                   },
                                   hooks);
  CaptureSummary summary = collector_.finish(outcome == nn::GenerationEngine::Outcome::kInterrupted);
  summary.drafts = engine_.statistics().drafts;
  return summary;
}

}  // namespace

data::TraceProvenance describe_teacher(const TextModel& teacher, const data::ChatTemplate* chat_template) {
  data::TraceProvenance provenance;
  provenance.teacher = teacher.files.path().string();
  provenance.weights = teacher.files.weights()->fingerprint();
  provenance.config = teacher.files.config_fingerprint();
  provenance.tokenizer = teacher.tokenizer->fingerprint();
  provenance.reasoning = data::find_reasoning_tokens(*teacher.tokenizer);
  if (chat_template) provenance.chat_template = chat_template->fingerprint();
  provenance.vocab_size = teacher.model->shape().vocab_size;
  return provenance;
}

namespace {

// Better known before an answer is made than when it cannot be stored.
void check_room_for_hidden_states(const nn::ModelShape& shape, const data::TraceProvenance& provenance) {
  constexpr uint64_t kMostBytes = data::trace_format::kMaxFrameBytes / 2;
  const int64_t longest = std::min({provenance.sampling.max_new_tokens, shape.max_positions, int64_t{INT32_MAX}});
  const uint64_t bytes = provenance.hidden_bytes(static_cast<int32_t>(longest));
  if (bytes <= kMostBytes) return;
  core::fail_usage(
      "hidden states: those of an answer of {} tokens may take {}, more than the {} that a document holds: keep fewer "
      "layers, keep them in fp8, or allow fewer new tokens",
      longest, core::format_bytes(static_cast<double>(bytes)), core::format_bytes(static_cast<double>(kMostBytes)));
}

}  // namespace

CaptureSummary capture_traces(const CaptureTeacher& teacher, std::span<const data::Prompt> prompts,
                              const data::TraceProvenance& provenance, const CaptureOptions& options) {
  check_room_for_hidden_states(teacher.model.shape(), provenance);
  return Capture(teacher, prompts, provenance, options).run();
}

}  // namespace distill
