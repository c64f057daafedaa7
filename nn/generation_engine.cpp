#include "nn/generation_engine.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "nn/drafter.h"
#include "nn/stop_strings.h"

namespace distill::nn {
namespace {

constexpr int64_t kDefaultCacheBytes = int64_t{2} << 30;
constexpr int64_t kMaxDrafts = 64;
constexpr int64_t kTriedDrafts = 256;     // after which drafts that nobody asked for must have paid
constexpr double kLeastAcceptance = 0.5;  // checking one costs a mixture of experts about half of a token

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
  int32_t guess = 0;          // of the next token, where the sequence has drafts
  bool thinks = false;        // in reasoning, where that has a budget
  int64_t thought = 0;        // tokens of it
  at::Tensor guess_hidden{};  // [1, hidden] the drafter's, from which it goes on

  int64_t drawn() const { return static_cast<int64_t>(tokens.size() - request->prompt.size()); }
  bool has_thought_enough() const { return thinks && thought >= request->options.thinking->tokens; }
  void note_reasoning(int32_t token) {
    if (!request->options.thinking) return;
    const data::ReasoningTokens& markers = request->options.thinking->markers;
    thinks = token == markers.open || (thinks && token != markers.close);
    thought += thinks && token != markers.open ? 1 : 0;
  }
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
  // A sequence whose next tokens are drawn in a step.
  struct Drawing {
    size_t item = 0;  // of the plan
    ScheduledSequence* sequence = nullptr;
    Answer* answer = nullptr;
    std::vector<int32_t> drafts{};
    int64_t first_row = 0;  // of the logits; one more for each draft
  };

  StepBatch assemble(const StepPlan& plan, size_t shift) const;
  // What `body` computes of this plan; its errors name the plan's prompts.
  template <typename Body>
  at::Tensor compute(const StepPlan& plan, Body&& body) const {
    try {
      return std::forward<Body>(body)();
    } catch (...) {
      core::rethrow_with_context(prompts_of(plan));
    }
  }
  std::string prompts_of(const StepPlan& plan) const;
  void append_drafts(const StepPlan& plan);
  void stop_useless_drafts();
  std::vector<Drawing> take_drafts_back(const StepPlan& plan);
  std::vector<bool> draw_and_check(const std::vector<Drawing>& drawings, const at::Tensor& logits,
                                   const at::Tensor& states, size_t items);
  void guess(const StepPlan& plan, const std::vector<bool>& alive, at::Tensor hidden);
  std::vector<Draw> draw(const at::Tensor& logits, const std::vector<Answer*>& answers);
  void show_logits(const at::Tensor& logits, const at::Tensor& states, const std::vector<Answer*>& answers) const;
  bool append(ScheduledSequence& sequence, Answer& answer, const Draw& draw);
  void show(Answer& answer, std::string_view text);
  void finish(ScheduledSequence& sequence, Answer& answer, data::FinishReason reason);

  GenerationEngine& engine_;
  const Sink& sink_;
  const EngineHooks& hooks_;
  GenerationScheduler scheduler_;
  std::unordered_map<uint64_t, Answer> answers_;  // by the scheduler's id
  uint64_t next_id_ = 0;
};

double tokens_per_pass(std::span<const DraftCount> drafts) {
  if (drafts.empty() || drafts.front().checked == 0) return 1;
  int64_t accepted = 0;
  for (const DraftCount& count : drafts) accepted += count.accepted;
  return 1 + static_cast<double>(accepted) / static_cast<double>(drafts.front().checked);
}

GenerationEngine::GenerationEngine(CausalLM& model, std::shared_ptr<const data::Tokenizer> tokenizer,
                                   EngineOptions options)
    : model_(model), tokenizer_(std::move(tokenizer)), options_(options) {
  core::check(options_.max_sequences > 0, "batch: must be at least 1, is {}", options_.max_sequences);
  core::check(options_.max_step_tokens > 0, "step tokens: must be at least 1, is {}", options_.max_step_tokens);
  core::check(options_.block_size > 0, "block size: must be at least 1, is {}", options_.block_size);
  core::check(options_.cache_tokens >= 0, "cache tokens: must not be negative, is {}", options_.cache_tokens);
  const int64_t drafts = options_.draft_tokens.value_or(model_.drafter() != nullptr ? 1 : 0);
  if (drafts < 0 || drafts > kMaxDrafts) {
    core::fail_usage("draft tokens: must be between 0 and {}, is {}", kMaxDrafts, drafts);
  }
  if (drafts > 0) {
    drafter_ = model_.drafter();
    if (drafter_ == nullptr)
      core::fail_usage("draft tokens: the model has no multi-token-prediction module to draft with");
  }
  statistics_.drafts.resize(static_cast<size_t>(drafts));
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
  if (options.thinking && options.thinking->tokens < 0) {
    core::fail_usage("thinking budget: must not be negative, is {}", options.thinking->tokens);
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
    if (const auto& thinking = shared->options.thinking) {
      answers_.at(ids.back()).thinks = data::is_open(shared->prompt, thinking->markers);
    }
    if (engine_.tokenizer_) answers_.at(ids.back()).decoder.emplace(engine_.tokenizer_);
  }
  scheduler_.add(length, ids);
}

// The tokens to be computed, or with `shift` 1 those that follow them.
StepBatch GenerationEngine::Run::assemble(const StepPlan& plan, size_t shift) const {
  return assemble_step(plan, engine_.cache_->block_size(), [&](const ScheduledSequence& sequence) {
    return std::span<const int32_t>(answers_.at(sequence.id).tokens).subspan(shift);
  });
}

std::string GenerationEngine::Run::prompts_of(const StepPlan& plan) const {
  std::vector<std::string> ids;
  for (const StepItem& item : plan.items) {
    std::string id = fmt::format("\"{}\"", answers_.at(item.sequence->id).request->id);
    if (std::ranges::find(ids, id) == ids.end()) ids.push_back(std::move(id));
  }
  return fmt::format("{} {}", ids.size() == 1 ? "prompt" : "one of the prompts", fmt::join(ids, ", "));
}

void GenerationEngine::Run::step() {
  const StepPlan plan = scheduler_.plan();
  for (const BlockCopy& copy : plan.copies) engine_.cache_->copy_block(copy.from, copy.to);
  append_drafts(plan);
  const StepBatch batch = assemble(plan, 0);
  LayerTap tap{.layers = hooks_.hidden_layers};
  const at::Tensor hidden = compute(
      plan, [&] { return engine_.model_.forward_tapped(batch.tokens, engine_.cache_.get(), &batch.slots, tap); });
  scheduler_.commit(plan);
  const std::vector<Drawing> drawings = take_drafts_back(plan);
  EngineStatistics& statistics = engine_.statistics_;
  ++statistics.steps;
  for (const StepItem& item : plan.items) {
    const auto prompt = static_cast<int64_t>(answers_.at(item.sequence->id).request->prompt.size());
    statistics.prompt_tokens += std::clamp<int64_t>(prompt - item.begin, 0, item.count);
  }
  std::vector<bool> alive(plan.items.size(), true);
  if (!drawings.empty()) {
    const bool all = batch.last_rows.size(0) == hidden.size(0);
    const auto drawing = [&](const at::Tensor& rows) { return all ? rows : rows.index_select(0, batch.last_rows); };
    for (at::Tensor& states : tap.states) states = drawing(states);
    const at::Tensor states = tap.states.empty() ? at::Tensor() : at::stack(tap.states, 1);
    alive = draw_and_check(drawings, engine_.model_.logits(drawing(hidden)).contiguous(), states, plan.items.size());
  }
  if (engine_.drafter_ != nullptr) {
    stop_useless_drafts();
    guess(plan, alive, hidden);
  }
}

void GenerationEngine::Run::stop_useless_drafts() {
  if (engine_.options_.draft_tokens || !engine_.drafts_pay_) return;
  const DraftCount& first = engine_.statistics_.drafts.front();
  if (first.checked < kTriedDrafts || first.acceptance() >= kLeastAcceptance) return;
  engine_.drafts_pay_ = false;
  core::log::warn(
      "of {} drafted tokens {:.0f} % were right, which is slower than none; going on without (--draft-tokens keeps "
      "them)",
      first.checked, 100 * first.acceptance());
}

// Puts the drafts that a step checks behind their sequences' tokens. The first was guessed when the last token was
// drawn; for more the drafter goes on from its own guesses.
void GenerationEngine::Run::append_drafts(const StepPlan& plan) {
  for (int64_t depth = 0;; ++depth) {
    StepPlan ahead;
    std::vector<Answer*> answers;
    for (const StepItem& item : plan.items) {
      if (item.drafts() <= depth) continue;
      Answer& answer = answers_.at(item.sequence->id);
      answer.tokens.push_back(answer.guess);
      if (item.drafts() == depth + 1) continue;
      answers.push_back(&answer);
      ahead.items.push_back({.sequence = item.sequence, .begin = item.sequence->length - 1 + depth, .count = 1});
    }
    if (answers.empty()) return;
    std::vector<at::Tensor> before;
    before.reserve(answers.size());
    for (const Answer* answer : answers) before.push_back(answer->guess_hidden);
    const StepBatch batch = assemble(ahead, 1);
    const at::Tensor hidden = compute(ahead, [&] {
      return engine_.drafter_->draft_forward(batch.tokens, at::cat(before), *engine_.cache_, batch.slots);
    });
    const std::vector<Draw> draws = draw(engine_.drafter_->draft_logits(hidden).contiguous(), answers);
    for (size_t i = 0; i < answers.size(); ++i) {
      answers[i]->guess = draws[i].token;
      answers[i]->guess_hidden = hidden.narrow(0, static_cast<int64_t>(i), 1);
    }
  }
}

std::vector<GenerationEngine::Run::Drawing> GenerationEngine::Run::take_drafts_back(const StepPlan& plan) {
  std::vector<Drawing> drawings;
  int64_t row = 0;
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const StepItem& item = plan.items[i];
    if (!item.reaches_end()) continue;
    Answer& answer = answers_.at(item.sequence->id);
    const auto drafts = answer.tokens.end() - item.drafts();
    drawings.push_back({.item = i,
                        .sequence = item.sequence,
                        .answer = &answer,
                        .drafts = {drafts, answer.tokens.end()},
                        .first_row = row});
    row += 1 + item.drafts();
    answer.tokens.erase(drafts, answer.tokens.end());
  }
  return drawings;
}

// Draws the token behind the last one of each sequence, then those behind drafts that turned out right, and so on.
// Returns for each item of the plan whether its sequence goes on.
std::vector<bool> GenerationEngine::Run::draw_and_check(const std::vector<Drawing>& drawings, const at::Tensor& logits,
                                                        const at::Tensor& states, size_t items) {
  std::vector<bool> alive(items, true);
  std::vector<DraftCount>& counts = engine_.statistics_.drafts;
  std::vector<const Drawing*> going_on;
  for (const Drawing& drawing : drawings) {
    going_on.push_back(&drawing);
    for (size_t depth = 0; depth < drawing.drafts.size(); ++depth) ++counts[depth].checked;
  }
  for (size_t depth = 0; !going_on.empty(); ++depth) {
    std::vector<int64_t> rows;
    std::vector<Answer*> answers;
    for (const Drawing* drawing : going_on) {
      rows.push_back(drawing->first_row + static_cast<int64_t>(depth));
      answers.push_back(drawing->answer);
    }
    const bool all = static_cast<int64_t>(rows.size()) == logits.size(0);
    const at::Tensor index = at::tensor(rows, at::kLong);
    const at::Tensor chosen = all ? logits : logits.index_select(0, index);
    show_logits(chosen, all || !states.defined() ? states : states.index_select(0, index), answers);
    std::vector<Draw> draws = draw(chosen, answers);
    std::vector<const Drawing*> right;
    for (size_t i = 0; i < going_on.size(); ++i) {
      if (answers[i]->has_thought_enough()) {
        draws[i] = {.token = answers[i]->request->options.thinking->markers.close, .log_probability = 0};
      }
      const Drawing& drawing = *going_on[i];
      const bool agreed = depth < drawing.drafts.size() && draws[i].token == drawing.drafts[depth];
      if (agreed) ++counts[depth].accepted;
      if (append(*drawing.sequence, *drawing.answer, draws[i])) {
        alive[drawing.item] = false;
      } else if (agreed) {
        right.push_back(&drawing);
      }
    }
    going_on = std::move(right);
  }
  for (const Drawing& drawing : drawings) {
    if (alive[drawing.item]) scheduler_.forget_drafts(*drawing.sequence);
  }
  return alive;
}

// Lets the drafter read what the model has just read and, where a sequence's next token is due, guess it. Once drafts
// don't pay the drafter, which has then missed tokens, reads no more, and no sequence has drafts.
void GenerationEngine::Run::guess(const StepPlan& plan, const std::vector<bool>& alive, at::Tensor hidden) {
  StepPlan known;
  std::vector<int64_t> rows;  // of `hidden` that stand, each with a token that follows it
  std::vector<ScheduledSequence*> due;
  std::vector<Answer*> answers;
  std::vector<int64_t> last_rows;  // of these, among `rows`
  int64_t first = 0;
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const StepItem& item = plan.items[i];
    if (alive[i]) {
      ScheduledSequence& sequence = *item.sequence;
      const int64_t count = std::min(item.count, sequence.length - 1 - item.begin);
      for (int64_t row = first; row < first + count; ++row) rows.push_back(row);
      known.items.push_back({.sequence = &sequence, .begin = item.begin, .count = count});
      Answer& answer = answers_.at(sequence.id);
      const int64_t drafts = engine_.drafts_pay_ ? static_cast<int64_t>(engine_.statistics_.drafts.size()) : 0;
      // A pass that accepts all its drafts draws one token more.
      sequence.drafts = item.begin + count < sequence.length - 1
                            ? 0
                            : std::clamp<int64_t>(answer.max_length - sequence.length - 1, 0, drafts);
      if (sequence.drafts > 0) {
        due.push_back(&sequence);
        answers.push_back(&answer);
        last_rows.push_back(static_cast<int64_t>(rows.size()) - 1);
      }
    }
    first += item.count;
  }
  if (rows.empty() || !engine_.drafts_pay_) return;
  if (static_cast<int64_t>(rows.size()) != hidden.size(0)) hidden = hidden.index_select(0, at::tensor(rows, at::kLong));
  const StepBatch batch = assemble(known, 1);
  hidden = compute(known,
                   [&] { return engine_.drafter_->draft_forward(batch.tokens, hidden, *engine_.cache_, batch.slots); });
  if (answers.empty()) return;
  hidden = hidden.index_select(0, at::tensor(last_rows, at::kLong));
  const std::vector<Draw> draws = draw(engine_.drafter_->draft_logits(hidden).contiguous(), answers);
  for (size_t i = 0; i < answers.size(); ++i) {
    answers[i]->guess = draws[i].token;
    answers[i]->guess_hidden = hidden.narrow(0, static_cast<int64_t>(i), 1);
  }
}

void GenerationEngine::Run::show_logits(const at::Tensor& logits, const at::Tensor& states,
                                        const std::vector<Answer*>& answers) const {
  if (!hooks_.on_logits) return;
  std::vector<LogitsRow> owners;
  owners.reserve(answers.size());
  for (const Answer* answer : answers) {
    owners.push_back({.id = answer->request->id, .sample = answer->sample, .index = answer->drawn()});
  }
  hooks_.on_logits(logits, owners);
  if (states.defined()) hooks_.on_hidden_states(states, owners);
}

// A token behind those of each answer, from its row of the logits.
std::vector<Draw> GenerationEngine::Run::draw(const at::Tensor& logits, const std::vector<Answer*>& answers) {
  const auto rows = static_cast<int64_t>(answers.size());
  const int64_t vocab = engine_.model_.shape().vocab_size;
  TORCH_CHECK(logits.scalar_type() == at::kFloat && logits.sizes() == at::IntArrayRef({rows, vocab}),
              "the model's logits are ", logits.scalar_type(), logits.sizes(), " for ", rows, " rows of ", vocab);
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

// True if the answer is complete with this token; it is gone then.
bool GenerationEngine::Run::append(ScheduledSequence& sequence, Answer& answer, const Draw& draw) {
  answer.tokens.push_back(draw.token);
  answer.log_probability += draw.log_probability;
  answer.note_reasoning(draw.token);
  scheduler_.grow(sequence);
  ++engine_.statistics_.generated_tokens;
  if (std::ranges::count(answer.request->options.stop_tokens, draw.token) > 0) {
    finish(sequence, answer, data::FinishReason::kStop);
    return true;
  }
  // Models may have more rows of logits than their tokenizer has tokens; those ids stand for no text.
  if (answer.decoder && draw.token < engine_.tokenizer_->vocab_size()) {
    show(answer, answer.stop_strings.push(answer.decoder->push(draw.token)));
  }
  const bool matched = answer.stop_strings.matched();
  if (!matched && static_cast<int64_t>(answer.tokens.size()) < answer.max_length) return false;
  finish(sequence, answer, matched ? data::FinishReason::kStop : data::FinishReason::kLength);
  return true;
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
