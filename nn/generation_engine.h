// Generates answers to a stream of prompts with any CausalLM: sequences of different lengths are computed side by side,
// each joins when there is room and leaves when it is complete.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "core/interrupt.h"
#include "data/tokenizer.h"
#include "nn/causal_lm.h"
#include "nn/generation_request.h"
#include "nn/step_batch.h"

namespace distill::nn {

struct EngineOptions {
  int64_t max_sequences = 16;     // computed side by side
  int64_t max_step_tokens = 512;  // a longer prompt is read in several steps, so that others need not wait for it
  int64_t block_size = 32;        // tokens of a cache block
  // Of the cache. 0: enough for `max_sequences` whole contexts, but at most 2 GiB (memory not used is not touched).
  int64_t cache_tokens = 0;
  // Tokens that the model's drafter guesses ahead of each next one, to be checked in the same pass. Empty: 1 if it has
  // a drafter, and none any more when of many fewer than half were right, for such drafts cost more than they save.
  // Answers stay the same.
  std::optional<int64_t> draft_tokens{};
};

// The row of a step's logits that decides token `index` of an answer.
struct LogitsRow {
  std::string_view id;
  uint32_t sample = 0;
  int64_t index = 0;
};

struct EngineHooks {
  // Before tokens are drawn: logits [rows, vocab] fp32, and whose they are. Each position of an answer is seen once.
  std::function<void(const at::Tensor& logits, std::span<const LogitsRow> rows)> on_logits{};
  // With on_logits: hidden states [rows, hidden_layers, hidden] of these layers (nn::LayerTap), those of the last token
  // before each row's, in the dtype the model computes in.
  std::vector<int64_t> hidden_layers{};
  std::function<void(const at::Tensor& states, std::span<const LogitsRow> rows)> on_hidden_states{};
  // New text of an answer, cut before its stop strings. Needs a tokenizer.
  std::function<void(std::string_view id, uint32_t sample, std::string_view text)> on_text{};
  // Asked before each step.
  std::function<bool()> interrupted = core::interrupt_requested;
};

// Of the drafts at one distance from the last certain token. A draft behind a wrong one counts as wrong.
struct DraftCount {
  int64_t checked = 0;
  int64_t accepted = 0;
  double acceptance() const { return checked > 0 ? static_cast<double>(accepted) / static_cast<double>(checked) : 0; }
};

// How many tokens one pass over a sequence with drafts gives: the speed-up, were such a pass as fast as a plain one.
double tokens_per_pass(std::span<const DraftCount> drafts);

struct EngineStatistics {
  int64_t steps = 0;
  int64_t prompt_tokens = 0;         // computed; those a shared prefix saved don't count
  int64_t generated_tokens = 0;      // drawn
  int64_t preemptions = 0;           // sequences that gave their blocks back and were computed anew
  std::vector<DraftCount> drafts{};  // [draft_tokens]
};

// With a drafter this is speculative decoding: a draft is drawn with the very random number that the model's own token
// is drawn with, and kept if both are the same token, so that the answer is token for token that of plain decoding, at
// any temperature.
//
// An answer depends on the model, the prompt, the sample's number and the request's options alone, not on what else is
// being generated (given a model whose rows don't depend on each other, as those of this project are). Not thread-safe.
class GenerationEngine {
 public:
  // The model outlives the engine. Throws UsageError if drafts are asked of a model without a drafter. `tokenizer` may
  // be null if no request has stop strings and no text is wanted.
  GenerationEngine(CausalLM& model, std::shared_ptr<const data::Tokenizer> tokenizer, EngineOptions options = {});
  ~GenerationEngine();

  // Throws Error or UsageError naming the prompt and the limit if the request can never be served: an empty prompt, one
  // that fills the model's context, more tokens than the cache holds, ids outside the vocabulary, senseless options.
  void check(const GenerationRequest& request) const;

  using Source = std::function<std::optional<GenerationRequest>()>;
  using Sink = std::function<void(Completion&&)>;

  enum class Outcome { kDone, kInterrupted };

  // Takes requests from `source` as there is room for them, until it gives none, and hands over answers as they are
  // completed. Interrupted, it drops unfinished answers. Throws what check() throws, what the callbacks throw, and
  // Error naming the prompt whose logits are not numbers, or all in a step that fails; the engine can be used again.
  Outcome run(const Source& source, const Sink& sink, const EngineHooks& hooks = {});

  const EngineStatistics& statistics() const { return statistics_; }
  int64_t cache_tokens() const { return cache_->num_blocks() * cache_->block_size(); }

 private:
  struct Answer;
  class Run;

  CausalLM& model_;
  std::shared_ptr<const data::Tokenizer> tokenizer_;
  EngineOptions options_;
  Drafter* drafter_ = nullptr;  // of the model; null if there are to be no drafts
  bool drafts_pay_ = true;
  std::unique_ptr<KvCache> cache_;
  std::vector<Sampler> samplers_;  // one per thread
  EngineStatistics statistics_;
};

}  // namespace distill::nn
