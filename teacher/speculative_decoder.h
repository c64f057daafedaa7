// Speculative decoding with the multi-token-prediction module (DeepSeek-V3 §2.2, "MTP in Inference"; Leviathan et al.
// 2023): the module drafts some tokens, the model checks them all in one pass and keeps those it would have drawn
// itself.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "nn/sampler.h"
#include "teacher/deepseek_model.h"

namespace distill::teacher {

struct SpeculativeOptions {
  int64_t drafts = 1;  // tokens drafted per pass; 0 decodes plainly
  int64_t max_new_tokens = 256;
  nn::SamplingOptions sampling{};
  uint64_t seed = 0;
  uint64_t document = 0;  // token i of the answer is drawn with Philox(seed, document, i)
  std::vector<int32_t> stop_tokens{};
};

struct SpeculativeStatistics {
  int64_t passes = 0;               // of the model, the prompt's included
  std::vector<int64_t> drafted{};   // [draft position]
  std::vector<int64_t> accepted{};  // of them; a draft behind a rejected one counts as rejected

  double acceptance(size_t position) const;
};

// The answer is token for token what plain decoding gives, also where tokens are drawn at random: a draft is drawn with
// the very random number that the model's own token is drawn with, and kept if both are the same token. So whatever the
// draft, each token has the model's distribution. Further drafts apply the one module to its own output. One sequence
// at a time; not thread-safe.
class SpeculativeDecoder {
 public:
  // The model outlives the decoder.
  explicit SpeculativeDecoder(DeepseekModel& model) : model_(model) {}

  // The new tokens, a stop token included. Throws UsageError if the options make no sense, and Error if the prompt is
  // empty, prompt and answer exceed the model's context, or drafts are wanted of a checkpoint that comes without a
  // prediction module.
  std::vector<int32_t> generate(const std::vector<int32_t>& prompt, const SpeculativeOptions& options);

  // Over all answers so far.
  const SpeculativeStatistics& statistics() const { return statistics_; }

 private:
  struct Sequence;
  at::Tensor run_model(Sequence& sequence, const std::vector<int32_t>& tokens, int64_t position);
  std::vector<int32_t> draft(Sequence& sequence, const SpeculativeOptions& options, int64_t count);
  int32_t draw(const at::Tensor& logits, const SpeculativeOptions& options, int64_t index);

  DeepseekModel& model_;
  nn::Sampler sampler_;
  SpeculativeStatistics statistics_;
};

}  // namespace distill::teacher
