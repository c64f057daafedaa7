// Which experts each token goes to in DeepSeek's mixtures of experts, and with what weight.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace distill::kernels {

// How logits become affinities.
enum class RouterScoring {
  kSoftmax,  // DeepSeek-V2 §2.1.2
  kSigmoid,  // DeepSeek-V3 §2.1.2, eq. 15
};

// How a group's affinity is found, by which the groups a token may go to are chosen.
enum class GroupScoring {
  kMaximum,    // of its experts: device-limited routing of DeepSeek-V2 ("group_limited_greedy")
  kTwoLargest  // the sum of its two largest: node-limited routing of DeepSeek-V3 ("noaux_tc")
};

struct RouterOptions {
  int64_t experts_per_token = 1;
  RouterScoring scoring = RouterScoring::kSigmoid;
  int64_t groups = 1;            // experts are split into this many groups of equal size, in order
  int64_t groups_per_token = 1;  // a token's experts come from the best so many groups
  GroupScoring group_scoring = GroupScoring::kTwoLargest;
  bool normalise = true;  // gates are divided by their sum
  double scaling = 1;     // and multiplied with this
};

struct Routing {
  at::Tensor experts;  // [tokens, experts_per_token] int32, by falling affinity; of equal ones the first
  at::Tensor gates;    // [tokens, experts_per_token] fp32
};

// `logits` [tokens, experts] fp32; `bias` [experts] fp32 or undefined is added to the affinities for the choice of
// groups and experts only, never to a gate (DeepSeek-V3 eq. 16). NaN logits are refused: they would choose at random.
Routing moe_router(const at::Tensor& logits, const at::Tensor& bias, const RouterOptions& options);

}  // namespace distill::kernels
