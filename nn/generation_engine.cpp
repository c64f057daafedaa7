#include "nn/generation_engine.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "nn/stop_strings.h"

namespace distill::nn {
namespace {

constexpr int64_t kDefaultCacheBytes = int64_t{2} << 30;

int64_t cache_blocks(const CausalLM& model, const EngineOptions& options) {
  int64_t tokens = options.cache_tokens;
  if (tokens == 0) {
    const int64_t bytes_per_token = std::max<int64_t>(1, model.make_cache(1, options.block_size)->bytes_per_token());
    tokens = std::min(options.max_sequences * model.shape().max_positions, kDefaultCacheBytes / bytes_per_token);
  }
  return std::max<int64_t>(1, (tokens + options.block_size - 1) / options.block_size);
}

// Stop strings that name a special token never appear in the text, which leaves special tokens out.
void turn_special_strings_into_tokens(const data::Tokenizer& tokenizer, GenerateOptions& options) {
  std::erase_if(options.stop_strings, [&](const std::string& string) {
    const auto id = tokenizer.token_to_id(string);
    if (!id || !tokenizer.is_special(*id)) return false;
    options.stop_tokens.push_back(*id);
    return true;
  });
}

}  // namespace

// One sequence as the engine sees it.
struct GenerationEngine::Answer {
  std::shared_ptr<const GenerationRequest> request;
  uint32_t sample = 0;
  uint64_t stream = 0;  // of random numbers
  int64_t max_length = 0;
  std::vector<int32_t> tokens;  // the prompt, then what was drawn
  double log_probability = 0;
  std::optional<data::StreamDecoder> decoder;
  StopStrings stop_strings;
  std::string text;

  int64_t drawn() const { return static_cast<int64_t>(tokens.size() - request->prompt.size()); }
};

// The state of one run.
class GenerationEngine::Run {
 public:
  Run(GenerationEngine& engine, const Sink& sink, const EngineHooks& hooks)
      : engine_(engine),
        sink_(sink),
        hooks_(hooks),
        scheduler_({.blocks = engine.cache_->num_blocks(),
                    .block_size = engine.cache_->block_size(),
                    .max_sequences = engine.options_.max_sequences,
                    .max_step_tokens = engine.options_.max_step_tokens}) {}

  GenerationScheduler& scheduler() { return scheduler_; }
  void add(GenerationRequest&& request);
  void step();

 private:
  std::vector<Draw> draw(const at::Tensor& logits, const std::vector<Answer*>& answers);
  void append(ScheduledSequence& sequence, Answer& answer, const Draw& draw);
  void show(Answer& answer, std::string_view text);
  void finish(ScheduledSequence& sequence, Answer& answer, data::FinishReason reason);

  GenerationEngine& engine_;
  const Sink& sink_;
  const EngineHooks& hooks_;
  GenerationScheduler scheduler_;
  std::unordered_map<uint64_t, Answer> answers_;  // by the scheduler's id
  uint64_t next_id_ = 0;
};

GenerationEngine::GenerationEngine(CausalLM& model, std::shared_ptr<const data::Tokenizer> tokenizer,
                                   EngineOptions options)
    : model_(model), tokenizer_(std::move(tokenizer)), options_(options) {
  core::check(options_.max_sequences > 0, "batch: must be at least 1, is {}", options_.max_sequences);
  core::check(options_.max_step_tokens > 0, "step tokens: must be at least 1, is {}", options_.max_step_tokens);
  core::check(options_.block_size > 0, "block size: must be at least 1, is {}", options_.block_size);
  core::check(options_.cache_tokens >= 0, "cache tokens: must not be negative, is {}", options_.cache_tokens);
  cache_ = model_.make_cache(cache_blocks(model_, options_), options_.block_size);
}

GenerationEngine::~GenerationEngine() = default;

void GenerationEngine::check(const GenerationRequest& request) const {
  const ModelShape& shape = model_.shape();
  const GenerateOptions& options = request.options;
  const auto length = static_cast<int64_t>(request.prompt.size());
  options.sampling.validate();
  if (options.max_new_tokens < 1) {
    core::fail_usage("max-new-tokens: must be at least 1, is {}", options.max_new_tokens);
  }
  if (!options.stop_strings.empty() && !tokenizer_) core::fail_usage("stop strings need a tokenizer");
  core::check(length > 0, "prompt \"{}\" has no tokens", request.id);
  core::check(!request.samples.empty(), "prompt \"{}\": no samples are asked for", request.id);
  for (const int32_t token : request.prompt) {
    core::check(token >= 0 && token < shape.vocab_size,
                "prompt \"{}\": token id {} lies outside the model's vocabulary of {}", request.id, token,
                shape.vocab_size);
  }
  core::check(length < shape.max_positions,
              "prompt \"{}\" has {} tokens, which leaves no room for an answer in the model's context of {}",
              request.id, length, shape.max_positions);
  const int64_t most = std::min(length + options.max_new_tokens, shape.max_positions);
  core::check(most - 1 <= cache_tokens(),
              "prompt \"{}\" with its answer may take {} tokens, more than the {} that fit the cache: allow fewer new "
              "tokens or more cache tokens",
              request.id, most, cache_tokens());
}

GenerationEngine::Outcome GenerationEngine::run(const Source& source, const Sink& sink, const EngineHooks& hooks) {
  const c10::InferenceMode no_gradients;
  samplers_.resize(static_cast<size_t>(at::get_num_threads()));
  Run run(*this, sink, hooks);
  const int64_t preemptions_before = statistics_.preemptions;
  for (bool more = true;;) {
    if (hooks.interrupted && hooks.interrupted()) return Outcome::kInterrupted;
    while (more && run.scheduler().has_room()) {
      auto request = source();
      more = request.has_value();
      if (more) run.add(*std::move(request));
    }
    if (run.scheduler().is_idle()) return Outcome::kDone;
    run.step();
    statistics_.preemptions = preemptions_before + run.scheduler().preemptions();
  }
}

void GenerationEngine::Run::add(GenerationRequest&& request) {
  if (engine_.tokenizer_) turn_special_strings_into_tokens(*engine_.tokenizer_, request.options);
  engine_.check(request);
  const auto shared = std::make_shared<const GenerationRequest>(std::move(request));
  const auto length = static_cast<int64_t>(shared->prompt.size());
  std::vector<uint64_t> ids;
  for (const uint32_t sample : shared->samples) {
    ids.push_back(next_id_++);
    answers_.emplace(ids.back(), Answer{
                                     .request = shared,
                                     .sample = sample,
                                     .stream = core::stream_id(shared->id, sample),
                                     .max_length = std::min(length + shared->options.max_new_tokens,
                                                            engine_.model_.shape().max_positions),
                                     .tokens = shared->prompt,
                                     .log_probability = 0,
                                     .decoder = {},
                                     .stop_strings = StopStrings(shared->options.stop_strings),
                                     .text = {},
                                 });
    if (engine_.tokenizer_) answers_.at(ids.back()).decoder.emplace(engine_.tokenizer_);
  }
  scheduler_.add(length, ids);
}

void GenerationEngine::Run::step() {
  const StepPlan plan = scheduler_.plan();
  for (const BlockCopy& copy : plan.copies) engine_.cache_->copy_block(copy.from, copy.to);
  const StepBatch batch = assemble_step(plan, engine_.cache_->block_size(), [&](const ScheduledSequence& sequence) {
    return std::span<const int32_t>(answers_.at(sequence.id).tokens);
  });
  at::Tensor hidden = engine_.model_.forward(batch.tokens, *engine_.cache_, batch.slots);
  scheduler_.commit(plan);

  std::vector<ScheduledSequence*> sequences;
  std::vector<Answer*> answers;
  EngineStatistics& statistics = engine_.statistics_;
  ++statistics.steps;
  for (const StepItem& item : plan.items) {
    Answer& answer = answers_.at(item.sequence->id);
    statistics.prompt_tokens +=
        std::clamp<int64_t>(static_cast<int64_t>(answer.request->prompt.size()) - item.begin, 0, item.count);
    if (!item.reaches_end()) continue;
    sequences.push_back(item.sequence);
    answers.push_back(&answer);
  }
  if (answers.empty()) return;
  if (batch.last_rows.size(0) != hidden.size(0)) hidden = hidden.index_select(0, batch.last_rows);
  const at::Tensor logits = engine_.model_.logits(hidden).contiguous();
  const std::vector<Draw> draws = draw(logits, answers);
  for (size_t i = 0; i < answers.size(); ++i) append(*sequences[i], *answers[i], draws[i]);
}

std::vector<Draw> GenerationEngine::Run::draw(const at::Tensor& logits, const std::vector<Answer*>& answers) {
  const auto rows = static_cast<int64_t>(answers.size());
  const int64_t vocab = engine_.model_.shape().vocab_size;
  TORCH_CHECK(logits.scalar_type() == at::kFloat && logits.sizes() == at::IntArrayRef({rows, vocab}),
              "the model's logits are ", logits.scalar_type(), logits.sizes(), " for ", rows, " rows of ", vocab);
  if (hooks_.on_logits) {
    std::vector<LogitsRow> owners;
    for (const Answer* answer : answers) {
      owners.push_back({.id = answer->request->id, .sample = answer->sample, .index = answer->drawn()});
    }
    hooks_.on_logits(logits, owners);
  }
  std::vector<Draw> draws(answers.size());
  const auto* values = logits.const_data_ptr<float>();
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    Sampler& sampler = engine_.samplers_[static_cast<size_t>(at::get_thread_num())];
    for (int64_t row = begin; row < end; ++row) {
      const Answer& answer = *answers[static_cast<size_t>(row)];
      const GenerateOptions& options = answer.request->options;
      core::with_context(fmt::format("prompt \"{}\"", answer.request->id), [&] {
        draws[static_cast<size_t>(row)] =
            sampler.draw({values + row * vocab, static_cast<size_t>(vocab)}, options.sampling,
                         core::Philox(options.seed, answer.stream, answer.tokens.size()));
      });
    }
  });
  return draws;
}

void GenerationEngine::Run::append(ScheduledSequence& sequence, Answer& answer, const Draw& draw) {
  answer.tokens.push_back(draw.token);
  answer.log_probability += draw.log_probability;
  scheduler_.grow(sequence);
  ++engine_.statistics_.generated_tokens;
  if (std::ranges::count(answer.request->options.stop_tokens, draw.token) > 0) {
    return finish(sequence, answer, data::FinishReason::kStop);
  }
  // Models may have more rows of logits than their tokenizer has tokens; those ids stand for no text.
  if (answer.decoder && draw.token < engine_.tokenizer_->vocab_size()) {
    show(answer, answer.stop_strings.push(answer.decoder->push(draw.token)));
  }
  if (answer.stop_strings.matched()) return finish(sequence, answer, data::FinishReason::kStop);
  if (static_cast<int64_t>(answer.tokens.size()) == answer.max_length) {
    finish(sequence, answer, data::FinishReason::kLength);
  }
}

void GenerationEngine::Run::show(Answer& answer, std::string_view text) {
  answer.text += text;
  if (hooks_.on_text && !text.empty()) hooks_.on_text(answer.request->id, answer.sample, text);
}

void GenerationEngine::Run::finish(ScheduledSequence& sequence, Answer& answer, data::FinishReason reason) {
  if (answer.decoder) {
    show(answer, answer.stop_strings.push(answer.decoder->finish()));
    if (answer.stop_strings.matched()) reason = data::FinishReason::kStop;
    show(answer, answer.stop_strings.finish());
  }
  const auto prompt_end = answer.tokens.begin() + static_cast<std::ptrdiff_t>(answer.request->prompt.size());
  Completion completion{
      .id = answer.request->id,
      .sample = answer.sample,
      .prompt = answer.request->prompt,
      .tokens = {prompt_end, answer.tokens.end()},
      .text = std::move(answer.text),
      .finish_reason = reason,
      .log_probability = answer.log_probability,
  };
  answers_.erase(sequence.id);
  scheduler_.finish(sequence);
  sink_(std::move(completion));
}

}  // namespace distill::nn
