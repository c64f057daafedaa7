// The formula of head_loss in plain ATen with all logits at once, for tests and benchmarks.
#pragma once

#include <ATen/ATen.h>

#include "kernels/head_loss/head_loss.h"

namespace distill::kernels::reference {

// [targets, vocab] of the stored weights.
inline at::Tensor dense_targets(const HeadLossTargets& targets, int64_t vocab, at::ScalarType dtype) {
  const at::Tensor counts = targets.offsets.diff();
  const at::Tensor row = at::repeat_interleave(at::arange(counts.size(0)), counts);
  at::Tensor dense = at::zeros({counts.size(0), vocab}, dtype);
  return dense.index_put_({row, targets.ids}, targets.weights.to(dtype));
}

// Of distributions q and p [targets, symbols], whose logarithms are clamped where they are 0.
inline at::Tensor divergence(Divergence kind, double mix, const at::Tensor& q, const at::Tensor& p) {
  const auto kl = [](const at::Tensor& a, const at::Tensor& b) {
    return (a * (a.clamp_min(1e-30).log() - b.clamp_min(1e-30).log())).sum(-1);
  };
  switch (kind) {
    case Divergence::kForwardKl:
      return kl(q, p);
    case Divergence::kReverseKl:
      return kl(p, q);
    case Divergence::kJensenShannon: {
      const at::Tensor m = mix * q + (1 - mix) * p;
      return mix * kl(q, m) + (1 - mix) * kl(p, m);
    }
    case Divergence::kTotalVariation:
      return 0.5 * (q - p).abs().sum(-1);
    case Divergence::kSkewForwardKl:
      return kl(q, mix * q + (1 - mix) * p);
    case Divergence::kSkewReverseKl:
      return kl(p, (1 - mix) * q + mix * p);
  }
  return {};
}

// Differentiable through autograd; computed in the dtype of hidden and weight.
inline HeadLoss head_loss(const at::Tensor& hidden, const at::Tensor& weight, const HeadLossTargets& targets,
                          const HeadLossOptions& options, double scale, const at::Tensor& token_weights) {
  at::Tensor logits = hidden.index_select(0, targets.rows).matmul(weight.t());
  if (options.soft_cap > 0) logits = options.soft_cap * at::tanh(logits / options.soft_cap);
  at::Tensor p = at::softmax(logits / options.temperature, -1);
  at::Tensor q;
  at::Tensor teacher_top;
  if (targets.teacher_hidden.defined()) {
    const at::Tensor theirs = targets.teacher_hidden.matmul(targets.teacher_weight.t());
    q = at::softmax(theirs / options.teacher_temperature, -1);
    teacher_top = q.argmax(-1);
    q = at::constant_pad_nd(q, {0, weight.size(0) - q.size(1)});
  } else {
    q = dense_targets(targets, weight.size(0), logits.scalar_type());
    teacher_top = q.argmax(-1);
    if (options.teacher_temperature != 1) q = q.pow(1 / options.teacher_temperature);
    if (options.teacher_temperature != 1 || options.tail == TailRule::kRenormalise) q = q / q.sum(-1, true);
    // The tail is one more symbol.
    const at::Tensor inside = q > 0;
    const at::Tensor uncovered =
        options.tail == TailRule::kGhost ? targets.uncovered.to(q.scalar_type()) : at::zeros_like(q.select(-1, 0));
    if (!inside.all().item<bool>()) {
      p = at::cat({p * inside, (p * inside.logical_not()).sum(-1, true)}, -1);
      q = at::cat({q, uncovered.unsqueeze(-1)}, -1);
    }
  }
  const at::Tensor entropy = -at::xlogy(q, q).sum(-1);
  const at::Tensor d = divergence(options.kind, options.mix, q, p);
  const at::Tensor known = targets.labels != kIgnoredLabel;
  const at::Tensor labels = targets.labels.masked_fill(known.logical_not(), 0);
  const at::Tensor ce = -at::log_softmax(logits, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1) * known;
  at::Tensor factors = (1 + entropy).pow(options.entropy_power);
  if (token_weights.defined()) factors = factors * token_weights.to(factors.scalar_type());
  const at::Tensor per_target =
      options.divergence * options.temperature * options.temperature * d + options.cross_entropy * ce;
  return {.loss = scale * (factors * per_target).sum(),
          .divergence = d,
          .kl = divergence(Divergence::kForwardKl, 0, q, p),
          .cross_entropy = ce,
          .confidence = at::amax(at::softmax(logits, -1), {-1}),
          .factors = factors,
          .top_ids = logits.argmax(-1),
          .teacher_top_ids = teacher_top};
}

// The loss as an eager PyTorch trainer computes it, for benchmarks: logits in hidden's dtype, one softmax in fp32, a
// gather of the stored ids, the tail as 1 - their sum. T = 1.
inline at::Tensor head_loss_eager(const at::Tensor& hidden, const at::Tensor& weight, const HeadLossTargets& targets,
                                  const HeadLossOptions& options, double scale) {
  const at::Tensor logits = hidden.matmul(weight.to(hidden.scalar_type()).t());
  const at::Tensor log_p = at::log_softmax(logits, -1, at::kFloat);
  const int64_t count = targets.rows.size(0);
  const at::Tensor q = targets.weights.view({count, -1});
  const at::Tensor head = log_p.gather(-1, targets.ids.view({count, -1}));
  const at::Tensor outside = at::log1p(-head.exp().sum(-1).clamp_max(1 - 1e-6));
  const at::Tensor kl = (at::xlogy(q, q) - q * head).sum(-1) + at::xlogy(targets.uncovered, targets.uncovered) -
                        targets.uncovered * outside;
  const at::Tensor ce = -log_p.gather(-1, targets.labels.unsqueeze(-1)).squeeze(-1);
  return scale * (options.divergence * kl + options.cross_entropy * ce).sum();
}

// The same against a teacher that is here, for any divergence, as an eager trainer computes it: both softmaxes whole.
inline at::Tensor head_loss_eager_dense(const at::Tensor& hidden, const at::Tensor& weight,
                                        const HeadLossTargets& targets, const HeadLossOptions& options, double scale) {
  const at::Tensor log_p = at::log_softmax(hidden.matmul(weight.to(hidden.scalar_type()).t()), -1, at::kFloat);
  const at::Tensor log_q = at::log_softmax(targets.teacher_hidden.matmul(targets.teacher_weight.t()), -1, at::kFloat);
  const auto kl = [](const at::Tensor& a, const at::Tensor& b) { return (a.exp() * (a - b)).sum(); };
  switch (options.kind) {
    case Divergence::kForwardKl:
      return scale * kl(log_q, log_p);
    case Divergence::kReverseKl:
      return scale * kl(log_p, log_q);
    default: {  // Jensen-Shannon
      const at::Tensor log_m = at::logaddexp(log_q + std::log(options.mix), log_p + std::log1p(-options.mix));
      return scale * (options.mix * kl(log_q, log_m) + (1 - options.mix) * kl(log_p, log_m));
    }
  }
}

}  // namespace distill::kernels::reference
