// What a student is trained on: forward KL divergence from the teacher's stored distributions, mixed with cross-entropy
// on the tokens that the teacher wrote.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "data/batcher.h"
#include "data/target_spec.h"
#include "kernels/head_loss/head_loss.h"
#include "nn/causal_lm.h"

namespace distill {

struct ObjectiveOptions {
  // Share of cross-entropy on the tokens, the rest is divergence (Hinton et al. 2015, §2); 1 ignores the stored
  // distributions.
  double hard_label_weight = 0.0;
  kernels::TailRule tail = kernels::TailRule::kGhost;
};

// Sums over targets, in fp64.
struct LossSums {
  double loss = 0;           // of the objective
  double divergence = 0;     // KL(teacher || student) in nats, as far as the stored distributions tell
  double cross_entropy = 0;  // of the tokens, in nats
  int64_t agreements = 0;    // targets whose most probable token is the same for teacher and student
  int64_t targets = 0;

  LossSums& operator+=(const LossSums& other);
};

struct BatchLoss {
  at::Tensor loss;  // scale * (sum over targets), an fp32 scalar, differentiable in the model's parameters
  LossSums sums;
};

class Objective {
 public:
  // `spec` says how the distributions were stored; the student's is taken at the same temperature.
  Objective(const ObjectiveOptions& options, const data::TargetSpec& spec);

  // The loss of one batch. Runs the model; under GradMode the result can be differentiated.
  BatchLoss operator()(nn::CausalLM& model, const data::TrainingBatch& batch, double scale) const;

 private:
  kernels::HeadLossOptions head_;
};

}  // namespace distill
