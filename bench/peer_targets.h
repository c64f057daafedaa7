// Target distributions as other projects store them, recomputed from their documented formats, for the comparison in
// targets_bench. Sizes are of the targets alone, without tokens, offsets or checksums.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "data/target_distribution.h"

namespace distill::bench {

struct PeerTargets {
  std::string name;
  double bytes_per_token = 0;
  data::SparseTargets targets;  // what is read back, one position per row
};

// `probabilities` [tokens, vocab] fp32. All of them keep the 128 most probable tokens:
// - DistillKit, the configuration that its README recommends (k 128, exact_k 16 in bf16, terms 0 to 4 and the root in
//   fp32 for the other log-probabilities, ids packed to the bits that the vocabulary needs);
// - Megatron Core, "Offline Logits Knowledge Distillation": fp16 log-probabilities and packed ids, compressed by zstd;
// - MaxText, save_top_k_teacher_logits: an fp32 value and an int32 id each.
std::vector<PeerTargets> peer_targets(const at::Tensor& probabilities);

}  // namespace distill::bench
