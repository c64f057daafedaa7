#include "distill/evaluation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>

namespace distill {

double Evaluation::perplexity() const {
  return std::exp(cross_entropy());
}

nlohmann::ordered_json Evaluation::to_json() const {
  return {{"documents", documents},
          {"tokens", tokens},
          {"targets", sums.targets},
          {"loss", loss()},
          {"divergence", divergence()},
          {"cross_entropy", cross_entropy()},
          {"perplexity", perplexity()},
          {"agreement", agreement()},
          {"calibration_error", sums.calibration.error()}};
}

Evaluation evaluate_targets(nn::CausalLM& model, data::Batcher& batcher, const Objective& objective,
                            core::Progress* progress) {
  const c10::NoGradGuard no_grad;
  Evaluation evaluation;
  batcher.restore({});
  while (const auto batch = batcher.next_in_epoch()) {
    evaluation.sums += objective(model, *batch, 1.0).sums;
    evaluation.documents += batch->documents.size();
    evaluation.tokens += static_cast<uint64_t>(batch->tokens.numel());
    if (progress != nullptr) progress->advance(batch->documents.size());
  }
  return evaluation;
}

}  // namespace distill
