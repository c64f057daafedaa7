#include "distill/capture.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>
#include <utility>

#include "core/digest.h"
#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "data/target_encoder.h"
#include "data/trace_reader.h"
#include "data/trace_writer.h"
#include "data/verifier.h"
#include "nn/generation_engine.h"

namespace distill {
namespace {

constexpr size_t kTracesPerSync = 8;  // a power cut loses at most so many; they are made again

using Clock = std::chrono::steady_clock;

nn::GenerateOptions generate_options(const CaptureTeacher& teacher, const data::TraceSampling& sampling) {
  return {
      .sampling = {.temperature = sampling.temperature,
                   .top_k = sampling.top_k,
                   .top_p = sampling.top_p,
                   .min_p = sampling.min_p},
      .max_new_tokens = sampling.max_new_tokens,
      .seed = sampling.seed,
      .stop_tokens = teacher.stop_tokens,
      .stop_strings = {},
  };
}

// An unknown verifier, or an answer it cannot check against, would otherwise show after hours.
void check_verifiers(std::span<const data::Prompt> prompts) {
  for (const auto& prompt : prompts) {
    if (prompt.verifier.empty()) continue;
    core::with_context(fmt::format("prompt \"{}\" (line {})", prompt.id, prompt.line),
                       [&] { data::verify(prompt.verifier, *prompt.answer, ""); });
  }
}

// One capture while it runs.
class Capture {
 public:
  Capture(const CaptureTeacher& teacher, std::span<const data::Prompt> prompts, const data::TraceProvenance& provenance,
          const CaptureOptions& options)
      : teacher_(teacher),
        prompts_(prompts),
        provenance_(provenance),
        options_(options),
        generate_options_(generate_options(teacher, provenance.sampling)),
        writer_(options.directory, provenance, {.name = "shard", .documents_per_sync = kTracesPerSync}),
        engine_(teacher.model, teacher.tokenizer,
                {.max_sequences = options.batch, .cache_tokens = options.cache_tokens}) {}

  CaptureSummary run();

 private:
  uint64_t count_already_there() const;
  std::optional<nn::GenerationRequest> next_request();
  void keep_targets(const at::Tensor& logits, std::span<const nn::LogitsRow> rows);
  void write(nn::Completion&& completion);

  const CaptureTeacher& teacher_;
  std::span<const data::Prompt> prompts_;
  const data::TraceProvenance& provenance_;
  const CaptureOptions& options_;
  nn::GenerateOptions generate_options_;
  data::TraceWriter writer_;
  nn::GenerationEngine engine_;

  size_t next_prompt_ = 0;
  // Prompts with unfinished answers, by id.
  struct Asked {
    const data::Prompt* prompt = nullptr;
    size_t unfinished = 0;
  };
  std::unordered_map<std::string, Asked> asked_;
  std::map<data::TraceKey, data::SparseTargets> targets_;  // of unfinished answers
  CaptureSummary summary_;
  std::optional<core::Progress> progress_;
};

uint64_t Capture::count_already_there() const {
  uint64_t count = 0;
  for (const auto& prompt : prompts_) {
    for (uint32_t sample = 0; sample < options_.samples; ++sample) count += writer_.contains({prompt.id, sample});
  }
  return count;
}

// The next prompt with answers still to be made.
std::optional<nn::GenerationRequest> Capture::next_request() {
  while (next_prompt_ < prompts_.size()) {
    const data::Prompt& prompt = prompts_[next_prompt_++];
    nn::GenerationRequest request{.id = prompt.id, .prompt = {}, .samples = {}, .options = generate_options_};
    for (uint32_t sample = 0; sample < options_.samples; ++sample) {
      if (!writer_.contains({prompt.id, sample})) request.samples.push_back(sample);
    }
    if (request.samples.empty()) continue;
    try {
      request.prompt = data::encode_prompt(prompt, *teacher_.tokenizer, teacher_.chat_template.get());
      engine_.check(request);
    } catch (const core::UsageError&) {
      throw;
    } catch (const core::Error& error) {
      core::log::warn("line {}: {}", prompt.line, error.what());
      summary_.rejected.push_back({prompt.id, error.what()});
      continue;
    }
    asked_[prompt.id] = {.prompt = &prompt, .unfinished = request.samples.size()};
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
        data::encode_target({values + row * vocab, vocab}, provenance_.targets, *outputs[row]);
      });
    }
  });
}

void Capture::write(nn::Completion&& completion) {
  const data::TraceKey key{completion.id, completion.sample};
  Asked& asked = asked_.at(completion.id);
  const data::Prompt& prompt = *asked.prompt;
  data::Trace trace{
      .document = {.key = key,
                   .tokens = std::move(completion.prompt),
                   .prompt_length = 0,
                   .finish_reason = completion.finish_reason,
                   .verdict = data::Verdict::kUnchecked,
                   .log_probability = completion.log_probability,
                   .seed = provenance_.sampling.seed},
      .targets = std::move(targets_.at(key)),
  };
  data::TraceDocument& document = trace.document;
  document.prompt_length = static_cast<int32_t>(document.tokens.size());
  document.tokens.insert(document.tokens.end(), completion.tokens.begin(), completion.tokens.end());
  if (!prompt.verifier.empty()) {
    document.verdict = core::with_context(fmt::format("prompt \"{}\"", prompt.id), [&] {
      return data::verify(prompt.verifier, *prompt.answer, completion.text);
    });
  }
  writer_.append(trace);
  targets_.erase(key);
  if (--asked.unfinished == 0) asked_.erase(prompt.id);

  ++summary_.traces;
  summary_.prompt_tokens += document.prompt().size();
  summary_.completion_tokens += document.completion().size();
  ++summary_.finish_reasons.at(static_cast<size_t>(document.finish_reason));
  ++summary_.verdicts.at(static_cast<size_t>(document.verdict));
  progress_->advance();
}

CaptureSummary Capture::run() {
  summary_.already_there = count_already_there();
  progress_.emplace("generating", prompts_.size() * static_cast<uint64_t>(options_.samples), "traces",
                    summary_.already_there);
  const auto start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  const auto outcome =
      engine_.run([&] { return next_request(); },
                  [&](nn::Completion&& completion) {
                    write(std::move(completion));
                    progress_->set_note(fmt::format("{:.0f} tokens/s", summary_.completion_tokens / seconds()));
                  },
                  {.on_logits = [&](const at::Tensor& logits, std::span<const nn::LogitsRow> rows) {
                    keep_targets(logits, rows);
                  }});
  progress_->finish();
  summary_.seconds = seconds();
  summary_.interrupted = outcome == nn::GenerationEngine::Outcome::kInterrupted;
  writer_.finish();
  return std::move(summary_);
}

void measure_set(const std::filesystem::path& directory, CaptureSummary& summary) {
  const auto reader = data::TraceReader::open(directory);
  summary.total_traces = reader.size();
  summary.total_completion_tokens = reader.completion_tokens();
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() == ".h5") summary.total_bytes += entry.file_size();
  }
}

}  // namespace

double CaptureSummary::tokens_per_second() const {
  return seconds > 0 ? static_cast<double>(completion_tokens) / seconds : 0;
}

double CaptureSummary::bytes_per_token() const {
  return total_completion_tokens > 0 ? static_cast<double>(total_bytes) / static_cast<double>(total_completion_tokens)
                                     : 0;
}

nlohmann::json CaptureSummary::to_json() const {
  nlohmann::json result{{"traces", traces},
                        {"already_there", already_there},
                        {"prompt_tokens", prompt_tokens},
                        {"completion_tokens", completion_tokens},
                        {"seconds", seconds},
                        {"tokens_per_second", tokens_per_second()},
                        {"interrupted", interrupted},
                        {"total",
                         {{"traces", total_traces},
                          {"completion_tokens", total_completion_tokens},
                          {"bytes", total_bytes},
                          {"bytes_per_token", bytes_per_token()}}}};
  for (size_t i = 0; i < finish_reasons.size(); ++i) {
    result["finish_reasons"][std::string(to_string(static_cast<data::FinishReason>(i)))] = finish_reasons[i];
  }
  for (size_t i = 0; i < verdicts.size(); ++i) {
    result["verdicts"][std::string(to_string(static_cast<data::Verdict>(i)))] = verdicts[i];
  }
  result["rejected"] = nlohmann::json::array();
  for (const auto& prompt : rejected) result["rejected"].push_back({{"id", prompt.id}, {"reason", prompt.reason}});
  return result;
}

data::TraceProvenance describe_teacher(const TextModel& teacher, const data::ChatTemplate* chat_template) {
  data::TraceProvenance provenance;
  provenance.teacher = teacher.files.path().string();
  provenance.weights = teacher.files.weights()->fingerprint();
  provenance.config = core::sha256_hex(teacher.files.config().dump());
  provenance.tokenizer = teacher.tokenizer->fingerprint();
  if (chat_template) provenance.chat_template = chat_template->fingerprint();
  provenance.vocab_size = teacher.model->shape().vocab_size;
  return provenance;
}

CaptureSummary capture_traces(const CaptureTeacher& teacher, std::span<const data::Prompt> prompts,
                              const data::TraceProvenance& provenance, const CaptureOptions& options) {
  if (options.samples < 1 || options.samples > UINT32_MAX) {
    core::fail_usage("samples: must be at least 1, is {}", options.samples);
  }
  check_verifiers(prompts);
  CaptureSummary summary = Capture(teacher, prompts, provenance, options).run();
  if (summary.traces + summary.already_there > 0) measure_set(options.directory, summary);
  return summary;
}

}  // namespace distill
