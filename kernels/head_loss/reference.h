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

// Differentiable through autograd; computed in the dtype of hidden and weight.
inline HeadLoss head_loss(const at::Tensor& hidden, const at::Tensor& weight, const HeadLossTargets& targets,
                          const HeadLossOptions& options, double scale, const at::Tensor& token_weights) {
  const at::Tensor logits = hidden.index_select(0, targets.rows).matmul(weight.t());
  const at::Tensor log_p = at::log_softmax(logits / options.temperature, -1);
  at::Tensor q = dense_targets(targets, weight.size(0), logits.scalar_type());
  at::Tensor uncovered = targets.uncovered.to(logits.scalar_type());
  if (options.tail == TailRule::kRenormalise) {
    q = q / q.sum(-1, true);
    uncovered = at::zeros_like(uncovered);
  }
  at::Tensor kl = (at::xlogy(q, q) - q * log_p).sum(-1);
  if (!(q > 0).all().item<bool>()) {  // otherwise there is no tail
    const at::Tensor outside = log_p.masked_fill(q > 0, -INFINITY).logsumexp(-1);
    kl = kl + at::xlogy(uncovered, uncovered) - uncovered * outside;
  }
  const at::Tensor ce = -at::log_softmax(logits, -1).gather(-1, targets.labels.unsqueeze(-1)).squeeze(-1);
  const at::Tensor per_target =
      options.divergence * options.temperature * options.temperature * kl + options.cross_entropy * ce;
  const at::Tensor weighted =
      token_weights.defined() ? per_target * token_weights.to(per_target.scalar_type()) : per_target;
  return {.loss = scale * weighted.sum(), .divergence = kl, .cross_entropy = ce, .top_ids = logits.argmax(-1)};
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

}  // namespace distill::kernels::reference
