#include <ATen/ATen.h>

#include <numeric>

#include "nn/causal_lm.h"

namespace distill::nn {

PackedBatch PackedBatch::from_sequences(const std::vector<std::vector<int32_t>>& sequences) {
  std::vector<int64_t> tokens;
  std::vector<int64_t> positions;
  std::vector<int32_t> offsets{0};
  for (const auto& sequence : sequences) {
    tokens.insert(tokens.end(), sequence.begin(), sequence.end());
    positions.resize(tokens.size());
    std::iota(positions.begin() + offsets.back(), positions.end(), 0);
    offsets.push_back(static_cast<int32_t>(tokens.size()));
  }
  return {.tokens = at::tensor(tokens, at::kLong),
          .positions = at::tensor(positions, at::kLong),
          .sequence_offsets = at::tensor(offsets, at::kInt)};
}

}  // namespace distill::nn
