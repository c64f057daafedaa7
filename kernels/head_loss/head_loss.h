// A student's output head and its loss on the teacher's distributions as one operator. Logits exist only for a
// block of the vocabulary at a time, never as [tokens, vocab]; forward computes the gradients along with the loss, as
// Liger Kernel does (Hsu et al. 2024, arXiv 2410.10989), and takes the vocabulary in blocks with recomputed logits, as
// Cut Cross-Entropy does (Wijmans et al. 2024, arXiv 2411.09009).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace distill::kernels {

// Between the teacher's distribution q and the student's p, in nats (docs/objectives.md).
enum class Divergence : uint8_t {
  kForwardKl,       // KL(q || p) = sum q log(q / p): covers what the teacher might say (Hinton et al. 2015, §2)
  kReverseKl,       // KL(p || q): says what the teacher surely might (MiniLLM, Gu et al. 2024, arXiv 2306.08543, eq. 1)
  kJensenShannon,   // B KL(q || m) + (1 - B) KL(p || m) with m = B q + (1 - B) p (GKD, Agarwal et al. 2024,
                    //   arXiv 2306.13649, eq. 1)
  kTotalVariation,  // 1/2 sum |q - p| (f-DISTILL, Wen et al. 2023, arXiv 2307.15190, §3)
  kSkewForwardKl,   // KL(q || A q + (1 - A) p) (DistiLLM, Ko et al. 2024, arXiv 2402.03898, §3.1)
  kSkewReverseKl,   // KL(p || (1 - A) q + A p) (ibid.)
};

// What the student is compared with at each position that has a target.
struct HeadLossTargets {
  at::Tensor rows;    // [targets] int64, distinct: target i belongs to hidden state rows[i]
  at::Tensor labels;  // [targets] int64: the token that follows, or kIgnoredLabel for no cross-entropy there

  // Stored distributions in compressed sparse rows; the fields of data::TrainingBatch of the same names.
  at::Tensor offsets{};    // [targets + 1] int64: target i has ids and weights [offsets[i], offsets[i + 1])
  at::Tensor ids{};        // [entries] int64, distinct within a target
  at::Tensor weights{};    // [entries] fp32, not negative
  at::Tensor uncovered{};  // [targets] fp32: probability outside the ids

  // Or in their place a teacher that is here: its logits are teacher_hidden teacher_weight^T, in blocks too.
  at::Tensor teacher_hidden{};  // [targets, teacher size] fp32 or bf16
  at::Tensor teacher_weight{};  // [teacher's vocab, teacher size], used in teacher_hidden's dtype. Tokens of the
                                //   student's vocabulary beyond the teacher's have q = 0, whose logarithm is taken for
                                //   ln 1e-30, as it is for stored distributions
};

inline constexpr int64_t kIgnoredLabel = -100;

// What becomes of a target's probability outside its ids, `uncovered`.
enum class TailRule : uint8_t {
  // All tokens without an id count as one ("ghost token", Anshumann et al. 2025, arXiv 2503.16870) on both
  // sides. It is the divergence of the two distributions after merging the tail, so a lower bound of the full one,
  // least where the student has the teacher's probabilities on the ids; the tail's shape is left to the student.
  kGhost,
  // The weights are scaled to sum to 1, as if the teacher gave the tail nothing. Biased: the student learns to be more
  // certain than the teacher by 1 / (1 - u). For comparison with trainers that do so.
  kRenormalise,
};

struct HeadLossOptions {
  Divergence kind = Divergence::kForwardKl;
  double mix = 0.5;            // B of Jensen-Shannon, A of the skewed ones, in (0, 1)
  double divergence = 1.0;     // weight of T^2 D(q, softmax(logits / T)) (T^2: Hinton et al. 2015, §2)
  double cross_entropy = 0.0;  // weight of -log softmax(logits)[label]
  double temperature = 1.0;    // T, of the student
  // q is softmax(teacher's logits / this). Of stored distributions: 1 takes them as they are; others need full ones,
  // which become q^(1 / this), scaled to sum to 1.
  double teacher_temperature = 1.0;
  TailRule tail = TailRule::kGhost;
  // E: each target counts (1 + H(q))^E times. Above 0 for positions where the teacher hesitates, below 0 for those
  // where it is sure. Of truncated targets H counts the tail as one token.
  double entropy_power = 0.0;
  double soft_cap = 0.0;  // C: logits are C tanh(hidden weight^T / C) (Gemma 2, arXiv 2408.00118, §2); 0 for none
};

struct HeadLoss {
  // fp32 scalar, differentiable in hidden and weight:
  //   scale * sum_i token_weights[i] (1 + H_i)^E * (options.divergence * T^2 D_i + options.cross_entropy * CE_i)
  at::Tensor loss;
  // Each [targets], of fp32 unless said otherwise.
  at::Tensor divergence;       // D_i, without T^2
  at::Tensor kl;               // KL(q || p), whatever D is
  at::Tensor cross_entropy;    // CE_i, 0 where the label is ignored
  at::Tensor confidence;       // softmax(logits)'s largest probability
  at::Tensor factors;          // token_weights[i] (1 + H_i)^E
  at::Tensor top_ids;          // int64: the student's most probable token
  at::Tensor teacher_top_ids;  // int64: the teacher's, -1 where it has no ids
};

// hidden [tokens, size] fp32 or bf16; weight [vocab, size] fp32 or bf16, used in hidden's dtype. Products have fp32
// sums; the gradient of the logits is rounded to hidden's dtype before it is multiplied, gradients come in the dtype of
// their tensor. `token_weights` [targets] fp32 may be undefined (all 1). Beyond its results the operator needs one
// block of logits, [targets, block] fp32 (two for whole distributions), of at most kHeadLossWorkspaceBytes unless there
// are very many targets, and a copy of the weight in hidden's dtype where that is small beside the full logits.
// Against the unfused formula in fp64: the loss within 1e-6 relative, gradients in fp32 within 1e-6 of their length
// (3e-6 for divergences of whole distributions other than the forward KL), in bf16 within one rounding, 2^-8.
// Stored targets that all have the whole vocabulary are computed like a teacher's. Logits are computed twice, of
// whole distributions thrice unless D is one of the KL divergences.
// Throws on shapes that do not fit together and on ids or labels outside the vocabulary.
HeadLoss head_loss(const at::Tensor& hidden, const at::Tensor& weight, const HeadLossTargets& targets,
                   const HeadLossOptions& options, double scale = 1.0, const at::Tensor& token_weights = {});

inline constexpr int64_t kHeadLossWorkspaceBytes = 16 << 20;

}  // namespace distill::kernels
