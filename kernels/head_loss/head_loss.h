// A student's output head and its loss on the teacher's stored distributions as one operator. Logits exist only for a
// block of the vocabulary at a time, never as [tokens, vocab]; forward computes the gradients along with the loss, as
// Liger Kernel does (Hsu et al. 2024, arXiv 2410.10989), and takes the vocabulary in blocks with recomputed logits, as
// Cut Cross-Entropy does (Wijmans et al. 2024, arXiv 2411.09009).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace distill::kernels {

// Positions that have a target, in compressed sparse rows; the fields of data::TrainingBatch of the same names.
struct HeadLossTargets {
  at::Tensor rows;       // [targets] int64, distinct: target i belongs to hidden state rows[i]
  at::Tensor labels;     // [targets] int64: the token that follows
  at::Tensor offsets;    // [targets + 1] int64: target i has ids and weights [offsets[i], offsets[i + 1])
  at::Tensor ids;        // [entries] int64, distinct within a target
  at::Tensor weights;    // [entries] fp32, not negative
  at::Tensor uncovered;  // [targets] fp32: probability outside the ids
};

// What becomes of a target's probability outside its ids, `uncovered`.
enum class TailRule : uint8_t {
  // All tokens without an id count as one ("ghost token", Anshumann et al. 2025, "Sparse Logit Sampling", §3): the term
  // u log(u / (1 - sum of the student's probabilities of the ids)) joins the divergence. It is the divergence of the
  // two distributions after merging the tail, so a lower bound of the full one, least where the student has the
  // teacher's probabilities on the ids; the tail's shape is left to the student.
  kGhost,
  // The weights are scaled to sum to 1, as if the teacher gave the tail nothing. Biased: the student learns to be more
  // certain than the teacher by 1 / (1 - u). For comparison with trainers that do so.
  kRenormalise,
};

struct HeadLossOptions {
  double divergence = 1.0;     // weight of T^2 KL(teacher || softmax(logits / T)) (T^2: Hinton et al. 2015, §2)
  double cross_entropy = 0.0;  // weight of -log softmax(logits)[label]
  double temperature = 1.0;    // T, the one that the stored distributions were taken at
  TailRule tail = TailRule::kGhost;
};

struct HeadLoss {
  // fp32 scalar, differentiable in hidden and weight:
  //   scale * sum_i token_weights[i] * (options.divergence * T^2 KL_i + options.cross_entropy * CE_i)
  at::Tensor loss;
  at::Tensor divergence;     // [targets] fp32: KL_i, without T^2
  at::Tensor cross_entropy;  // [targets] fp32: CE_i
  at::Tensor top_ids;        // [targets] int64: the student's most probable token
};

// hidden [tokens, size] fp32 or bf16; weight [vocab, size] fp32 or bf16, used in hidden's dtype. Products have fp32
// sums; the gradient of the logits is rounded to hidden's dtype before it is multiplied, gradients come in the dtype of
// their tensor. `token_weights` [targets] fp32 may be undefined (all 1). Beyond its results the operator needs one
// block of logits, [targets, block] fp32, of at most kHeadLossWorkspaceBytes unless there are very many targets.
// Throws on shapes that do not fit together and on ids or labels outside the vocabulary.
HeadLoss head_loss(const at::Tensor& hidden, const at::Tensor& weight, const HeadLossTargets& targets,
                   const HeadLossOptions& options, double scale = 1.0, const at::Tensor& token_weights = {});

inline constexpr int64_t kHeadLossWorkspaceBytes = 24 << 20;

}  // namespace distill::kernels
