// The formula of moe_router in plain ATen, for tests.
#pragma once

#include <ATen/ATen.h>

#include <limits>

#include "kernels/moe_router/moe_router.h"

namespace distill::kernels::reference {

inline Routing moe_router(const at::Tensor& logits, const at::Tensor& bias, const RouterOptions& options) {
  const at::Tensor scores = options.scoring == RouterScoring::kSoftmax ? logits.softmax(-1) : logits.sigmoid();
  const at::Tensor preferences = bias.defined() ? scores + bias : scores;
  const at::Tensor grouped = preferences.unflatten(1, {options.groups, -1});
  const at::Tensor group_scores =
      options.group_scoring == GroupScoring::kMaximum ? grouped.amax(-1) : std::get<0>(grouped.topk(2, -1)).sum(-1);
  const at::Tensor best_groups = std::get<1>(group_scores.topk(options.groups_per_token, -1));
  const at::Tensor allowed = at::zeros_like(group_scores, at::kBool).scatter(1, best_groups, true);
  const at::Tensor masked =
      grouped.masked_fill(allowed.logical_not().unsqueeze(-1), -std::numeric_limits<float>::infinity()).flatten(1);
  const at::Tensor experts = std::get<1>(masked.topk(options.experts_per_token, -1));
  at::Tensor gates = scores.gather(1, experts);
  if (options.normalise) gates = gates / gates.sum(-1, true);
  return {.experts = experts.to(at::kInt), .gates = gates * options.scaling};
}

}  // namespace distill::kernels::reference
