// New answers to the prompts of a batch, written during training by the student itself or by a teacher.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "data/batcher.h"
#include "data/trace_source.h"
#include "distill/recipe.h"
#include "nn/causal_lm.h"
#include "nn/generation_request.h"

namespace distill {

// A model's answers to the prompts of these documents, in their order.
std::vector<std::vector<int32_t>> write_answers(nn::CausalLM& writer, std::span<const data::TraceDocument> documents,
                                                const nn::GenerateOptions& options);

enum class AnswerSource : uint8_t { kTraces, kStudent, kTeacher };

class AnswerSampler {
 public:
  // `stop_tokens` end an answer. `max_tokens`: of a batch, those to be rewritten included.
  AnswerSampler(std::shared_ptr<const data::TraceSource> traces, const OnPolicyOptions& options,
                std::vector<int32_t> stop_tokens, int64_t max_tokens, uint64_t seed);

  // Who answers in batch `index` of step `step`, drawn by the shares.
  AnswerSource source(int64_t step, int64_t index) const;

  // The batch with its answers written anew by `writer`: every position of a completion is a target, without a stored
  // distribution. `own`: the student wrote them, so there are no labels (cross-entropy on one's own words teaches
  // nothing). As many batches as the new answers need, documents cut to a batch as in data::Batcher. The same answers
  // for the same weights, step, index and seed.
  std::vector<data::TrainingBatch> rewrite(const data::TrainingBatch& batch, nn::CausalLM& writer, bool own,
                                           int64_t step, int64_t index) const;

 private:
  std::shared_ptr<const data::TraceSource> traces_;
  OnPolicyOptions options_;
  std::vector<int32_t> stop_tokens_;
  int64_t max_tokens_;
  uint64_t seed_;
};

}  // namespace distill
