// What a student is trained on: a divergence from the teacher's distributions, stored or computed by teachers that are
// here, mixed with cross-entropy on the tokens of the traces. docs/objectives.md has the formulas.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "data/batcher.h"
#include "data/safetensors_writer.h"
#include "data/target_spec.h"
#include "distill/hidden_loss.h"
#include "distill/online_teacher.h"
#include "kernels/head_loss/head_loss.h"
#include "nn/causal_lm.h"

namespace distill {

// How often a target counts: the product of what applies.
struct TokenWeightOptions {
  double reasoning = 1.0;  // tokens up to the end of "</think>"; the others are the answer
  double answer = 1.0;
  double incorrect = 1.0;  // traces that their verifier found wrong; 0 leaves them out
  double unchecked = 1.0;  // traces of prompts without a verifier
  // (1 + teacher's entropy in nats)^this: above 0 for positions where the teacher hesitates, below for sure ones.
  double entropy_power = 0.0;
};

// What a student learns from whose tokenizer is not the teacher's.
enum class OtherTokenizer : uint8_t {
  kRefuse,   // nothing: most often it is a mistake
  kText,     // the text of the traces (then hard_label_weight is 1)
  kAligned,  // the distributions too, carried over to its tokens (data/token_alignment.h)
};

// Layers whose hidden states are compared, numbered as in nn::LayerTap.
using data::kLastLayer;
struct LayerPair {
  int64_t student = kLastLayer;
  int64_t teacher = kLastLayer;
};

// The distance between hidden states.
struct HiddenStateOptions {
  HiddenDistance distance = HiddenDistance::kMse;
  double weight = 0.0;                         // of the loss, beside divergence and cross-entropy
  std::vector<LayerPair> layers{LayerPair{}};  // the distance is the mean of theirs
};

struct ObjectiveOptions {
  kernels::Divergence divergence = kernels::Divergence::kForwardKl;
  // Beta of Jensen-Shannon, alpha of the skewed divergences. Unset: 0.5 and 0.1, as their papers have it.
  std::optional<double> mix{};
  // Share of cross-entropy on the tokens, the rest is divergence (Hinton et al. 2015, §2); 1 ignores the distributions.
  double hard_label_weight = 0.0;
  std::optional<double> temperature{};          // of the student; unset: the teacher's
  std::optional<double> teacher_temperature{};  // unset: the one that the distributions were stored at, 1 online
  kernels::TailRule tail = kernels::TailRule::kGhost;
  TokenWeightOptions weights{};
  HiddenStateOptions hidden_states{};
  OtherTokenizer other_tokenizer = OtherTokenizer::kRefuse;
};

// How sure a model is of its first choice, and how often that is the token that was written, in bins of equal width.
struct Calibration {
  static constexpr size_t kBins = 15;
  std::array<double, kBins> count{}, confidence{}, hits{};  // sums over the targets of a bin

  // Expected calibration error: the mean |confidence - accuracy| (Guo et al. 2017, arXiv 1706.04599, eq. 3).
  double error() const;
};

// Sums over targets, in fp64.
struct LossSums {
  double loss = 0;        // of the objective
  double divergence = 0;  // KL(teacher || student) in nats, as far as the distributions tell, whatever is trained on;
                          //   less what their own noise adds to it, where traces know that
  double cross_entropy = 0;  // of the tokens, in nats
  double hidden_states = 0;  // distance, where it is trained on
  int64_t agreements = 0;    // targets whose most probable token is the same for teacher and student
  int64_t targets = 0;
  Calibration calibration{};

  LossSums& operator+=(const LossSums& other);
  // All of it as fp64 numbers [count], to be summed over ranks.
  at::Tensor to_tensor() const;
  static LossSums from_tensor(const at::Tensor& numbers);
};

struct BatchLoss {
  at::Tensor loss;  // scale * (sum over targets), an fp32 scalar, differentiable in the model's parameters
  LossSums sums;
};

class Objective {
 public:
  // Of stored distributions alone, without hidden states; `spec` says how, `carried_over` whether they were another
  // tokenizer's. Throws UsageError if they do not support the objective soundly (target_support.h).
  Objective(const ObjectiveOptions& options, const data::TargetSpec& spec, bool carried_over = false);
  // Of everything that traces store, hidden states included. The student's shape and the seed are for the projectors of
  // these, if they are trained on. Throws UsageError too if the traces or the student don't have those layers.
  Objective(const ObjectiveOptions& options, const data::TraceSource& traces, const nn::ModelShape& student = {},
            uint64_t seed = 0);
  // Of teachers; batches need neither distributions nor hidden states.
  Objective(const ObjectiveOptions& options, std::vector<OnlineTeacher> teachers, const nn::ModelShape& student = {},
            uint64_t seed = 0);

  // The loss of one batch; of several teachers the weighted sum, and agreement with the first. Runs the model; under
  // GradMode the result can be differentiated. A teacher whose vocabulary is smaller than the student's gives the other
  // tokens nothing.
  BatchLoss operator()(nn::CausalLM& model, const data::TrainingBatch& batch, double scale) const;

  // What is trained along with the student, but no part of it: "projector.<number>", fp32 leaves, one for each pair of
  // layers of the first teacher, then those of the second, and so on.
  data::NamedTensors parameters() const;

  // Layers whose stored hidden states the batches must have (data::BatcherOptions); none unless they are trained on.
  std::vector<int64_t> stored_layers() const;

 private:
  // Hidden states to be compared: [targets, size] of each pair of layers, and how.
  struct Comparison {
    std::span<const at::Tensor> student, teacher;
    std::span<const HiddenLoss> losses;
  };
  void add_projectors(const HiddenStateOptions& options, int64_t student_size, int64_t teacher_size, uint64_t seed);
  BatchLoss compute(const at::Tensor& hidden, const at::Tensor& head, const kernels::HeadLossTargets& targets,
                    double scale, const at::Tensor& token_weights, const Comparison& compared) const;

  kernels::HeadLossOptions head_;
  double divergence_excess_ = 0;  // of the stored distributions, per target
  double hidden_weight_ = 0;
  std::vector<int64_t> student_layers_;               // of each pair, if hidden states are trained on
  std::vector<std::vector<int64_t>> teacher_layers_;  //   likewise of each teacher, or of the one that wrote the traces
  std::vector<HiddenLoss> hidden_losses_;             // of all pairs of the first, then of the second, ...
  TokenWeightOptions weights_;
  std::vector<OnlineTeacher> teachers_;
};

}  // namespace distill
