// How close a model is to the teacher whose traces are given.
#pragma once

#include <nlohmann/json.hpp>

#include "core/progress.h"
#include "data/batcher.h"
#include "distill/objective.h"
#include "nn/causal_lm.h"

namespace distill {

// Means over targets, that is over the tokens of completions.
struct Evaluation {
  uint64_t documents = 0;
  uint64_t tokens = 0;  // read by the model, prompts included
  LossSums sums;

  double loss() const { return mean(sums.loss); }
  double divergence() const { return mean(sums.divergence); }        // KL(teacher || model), nats per token
  double cross_entropy() const { return mean(sums.cross_entropy); }  // of the completions, nats per token
  double perplexity() const;                                         // exp of it
  double agreement() const { return mean(static_cast<double>(sums.agreements)); }  // share with the same top token

  // {"documents", "tokens", "targets", "loss", "divergence", "cross_entropy", "perplexity", "agreement",
  // "calibration_error"}.
  nlohmann::ordered_json to_json() const;

 private:
  double mean(double sum) const { return sums.targets > 0 ? sum / static_cast<double>(sums.targets) : 0; }
};

// One pass over the batcher's documents from the start of an epoch, without gradients. `progress` may be null; it
// counts documents.
Evaluation evaluate_targets(nn::CausalLM& model, data::Batcher& batcher, const Objective& objective,
                            core::Progress* progress);

}  // namespace distill
