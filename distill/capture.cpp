#include "distill/capture.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <map>
#include <optional>
#include <utility>

#include "core/digest.h"
#include "core/error.h"
#include "data/target_capture.h"
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
  std::optional<nn::GenerationRequest> next_request();
  void keep_targets(const at::Tensor& logits, std::span<const nn::LogitsRow> rows);

  const CaptureTeacher& teacher_;
  const data::TraceProvenance& provenance_;
  nn::GenerateOptions generate_options_;
  TraceCollector collector_;
  nn::GenerationEngine engine_;
  std::map<data::TraceKey, data::SparseTargets> targets_;  // of unfinished answers
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
    for (const uint32_t sample : request.samples) targets_[{prompt.id, sample}];
    return request;
  }
  return std::nullopt;
}

void Capture::keep_targets(const at::Tensor& logits, std::span<const nn::LogitsRow> rows) {
  std::vector<data::SparseTargets*> outputs;
  for (const auto& row : rows) outputs.push_back(&targets_.at({std::string(row.id), row.sample}));
  const auto vocab = static_cast<size_t>(logits.size(1));
  const auto* values = logits.const_data_ptr<float>();
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (auto row = static_cast<size_t>(begin); row < static_cast<size_t>(end); ++row) {
      core::with_context(fmt::format("prompt \"{}\"", rows[row].id), [&] {
        data::capture_target({values + row * vocab, vocab}, provenance_, {std::string(rows[row].id), rows[row].sample},
                             static_cast<uint64_t>(rows[row].index), *outputs[row]);
      });
    }
  });
}

CaptureSummary Capture::run() {
  const auto outcome = engine_.run([&] { return next_request(); },
                                   [&](nn::Completion&& completion) {
                                     auto targets = targets_.extract({completion.id, completion.sample});
                                     collector_.write(std::move(completion), std::move(targets.mapped()));
                                   },
                                   {.on_logits = [&](const at::Tensor& logits, std::span<const nn::LogitsRow> rows) {
                                     keep_targets(logits, rows);
                                   }});
  CaptureSummary summary = collector_.finish(outcome == nn::GenerationEngine::Outcome::kInterrupted);
  summary.drafts = engine_.statistics().drafts;
  return summary;
}

}  // namespace

data::TraceProvenance describe_teacher(const TextModel& teacher, const data::ChatTemplate* chat_template) {
  data::TraceProvenance provenance;
  provenance.teacher = teacher.files.path().string();
  provenance.weights = teacher.files.weights()->fingerprint();
  provenance.config = core::sha256_hex(teacher.files.config().dump());
  provenance.tokenizer = teacher.tokenizer->fingerprint();
  provenance.reasoning = data::find_reasoning_tokens(*teacher.tokenizer);
  if (chat_template) provenance.chat_template = chat_template->fingerprint();
  provenance.vocab_size = teacher.model->shape().vocab_size;
  return provenance;
}

CaptureSummary capture_traces(const CaptureTeacher& teacher, std::span<const data::Prompt> prompts,
                              const data::TraceProvenance& provenance, const CaptureOptions& options) {
  return Capture(teacher, prompts, provenance, options).run();
}

}  // namespace distill
