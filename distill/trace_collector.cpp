#include "distill/trace_collector.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "data/verifier.h"

namespace distill {
namespace {

constexpr size_t kTracesPerSync = 8;  // a power cut loses at most so many; they are made again

// An unknown verifier, or an answer it cannot check against, would otherwise show after hours.
void check_verifiers(std::span<const data::Prompt> prompts) {
  for (const auto& prompt : prompts) {
    if (prompt.verifier.empty()) continue;
    core::with_context(fmt::format("prompt \"{}\" (line {})", prompt.id, prompt.line),
                       [&] { data::check_verifier(prompt.verifier, *prompt.answer); });
  }
}

// The prompts whose verifiers can check, so that this comes before anything is opened.
std::span<const data::Prompt> checked(std::span<const data::Prompt> prompts, int64_t samples) {
  if (samples < 1 || samples > UINT32_MAX) core::fail_usage("samples: must be at least 1, is {}", samples);
  check_verifiers(prompts);
  return prompts;
}

}  // namespace

nn::GenerateOptions generate_options(const data::TraceProvenance& provenance, const std::vector<int32_t>& stop_tokens) {
  const data::TraceSampling& sampling = provenance.sampling;
  std::optional<nn::ThinkingBudget> thinking;
  if (sampling.thinking_budget) {
    if (!provenance.reasoning) {
      core::fail_usage("thinking budget: the model's tokenizer has no tokens <think> and </think>");
    }
    thinking = nn::ThinkingBudget{.markers = *provenance.reasoning, .tokens = *sampling.thinking_budget};
  }
  return {
      .sampling = {.temperature = sampling.temperature,
                   .top_k = sampling.top_k,
                   .top_p = sampling.top_p,
                   .min_p = sampling.min_p},
      .max_new_tokens = sampling.max_new_tokens,
      .seed = sampling.seed,
      .stop_tokens = stop_tokens,
      .stop_strings = {},
      .thinking = thinking,
  };
}

TraceCollector::TraceCollector(std::span<const data::Prompt> prompts, const data::TraceProvenance& provenance,
                               std::shared_ptr<const data::Tokenizer> tokenizer, const std::filesystem::path& directory,
                               int64_t samples)
    : prompts_(checked(prompts, samples)),
      provenance_(provenance),
      tokenizer_(std::move(tokenizer)),
      directory_(directory),
      samples_(static_cast<uint32_t>(samples)),
      writer_(directory, provenance, {.name = "shard", .documents_per_sync = kTracesPerSync}) {
  for (const auto& prompt : prompts_) {
    for (uint32_t sample = 0; sample < samples_; ++sample) {
      summary_.already_there += writer_.contains({prompt.id, sample}) ? 1 : 0;
    }
  }
  progress_.emplace("generating", prompts_.size() * samples_, "traces", summary_.already_there);
}

TraceCollector::~TraceCollector() {
  try {
    verification_.finish();
  } catch (const std::exception& error) {
    core::log::error("{}", error.what());
  }
}

std::optional<TraceCollector::Missing> TraceCollector::next() {
  while (next_prompt_ < prompts_.size()) {
    const data::Prompt& prompt = prompts_[next_prompt_++];
    Missing missing{.prompt = &prompt, .samples = {}};
    for (uint32_t sample = 0; sample < samples_; ++sample) {
      if (!writer_.contains({prompt.id, sample})) missing.samples.push_back(sample);
    }
    if (missing.samples.empty()) continue;
    asked_[prompt.id] = {.prompt = &prompt, .unfinished = missing.samples.size()};
    return missing;
  }
  return std::nullopt;
}

void TraceCollector::reject(const std::string& id, const std::string& reason) {
  core::log::warn("line {}: {}", asked_.at(id).prompt->line, reason);
  auto& rejected = summary_.rejected;
  if (std::ranges::find(rejected, id, &RejectedPrompt::id) == rejected.end()) {
    rejected.push_back({id, reason});
  }
}

void TraceCollector::write(nn::Completion&& completion, data::SparseTargets&& targets,
                           std::vector<std::byte>&& hidden_states) {
  Asked& asked = asked_.at(completion.id);
  const data::Prompt& prompt = *asked.prompt;
  data::Trace trace{
      .document = {.key = {completion.id, completion.sample},
                   .tokens = std::move(completion.prompt),
                   .prompt_length = 0,
                   .finish_reason = completion.finish_reason,
                   .verdict = data::Verdict::kUnchecked,
                   .log_probability = completion.log_probability,
                   .seed = provenance_.sampling.seed},
      .targets = std::move(targets),
      .hidden_states = std::move(hidden_states),
  };
  data::TraceDocument& document = trace.document;
  document.prompt_length = static_cast<int32_t>(document.tokens.size());
  document.tokens.insert(document.tokens.end(), completion.tokens.begin(), completion.tokens.end());
  const int32_t reasoning = provenance_.reasoning_length(document);
  std::string answer;
  if (!prompt.verifier.empty()) {
    answer = reasoning == 0 ? std::move(completion.text)
                            : tokenizer_->decode(document.completion().subspan(static_cast<size_t>(reasoning)), true);
  }
  if (--asked.unfinished == 0) asked_.erase(prompt.id);
  verification_.add(
      prompt, std::move(answer),
      [this, trace = std::move(trace), reasoning](data::Verdict verdict) mutable { store(trace, verdict, reasoning); });
}

void TraceCollector::store(data::Trace& trace, data::Verdict verdict, int32_t reasoning) {
  data::TraceDocument& document = trace.document;
  document.verdict = verdict;
  writer_.append(trace);
  ++summary_.traces;
  summary_.prompt_tokens += document.prompt().size();
  summary_.completion_tokens += document.completion().size();
  summary_.reasoning_tokens += static_cast<uint64_t>(reasoning);
  ++summary_.finish_reasons.at(static_cast<size_t>(document.finish_reason));
  ++summary_.verdicts.at(static_cast<size_t>(document.verdict));
  progress_->advance();
  progress_->set_note(fmt::format("{:.0f} tokens/s", static_cast<double>(summary_.completion_tokens) / seconds()));
}

CaptureSummary TraceCollector::finish(bool interrupted) {
  verification_.finish();
  progress_->finish();
  summary_.seconds = seconds();
  summary_.interrupted = interrupted;
  // Interrupted, the journal stays: the next run goes on with it and ends with the shards of an undisturbed one.
  interrupted ? writer_.flush() : writer_.finish();
  if (!interrupted && summary_.traces + summary_.already_there > 0) summary_.measure_set(directory_);
  return std::move(summary_);
}

}  // namespace distill
