// The targets of one document, position by position.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/balanced_rounding.h"
#include "data/target_distribution.h"
#include "data/target_spec.h"
#include "data/trace.h"

namespace distill::data {

// Reduces each position as encode_target() does, but chooses the tails of threshold targets for kWindow positions
// together: an id that has a part of a threshold at many of them is then kept about as often as these parts make up, so
// that what the draws err at one position is made good at another (docs/targets.md). What is kept depends on the seed,
// the key and the logits alone.
class TargetSampler {
 public:
  static constexpr uint32_t kWindow = 1024;

  TargetSampler(const TargetSpec& spec, uint64_t seed, const TraceKey& key);

  // The next position: logits [vocab]. Throws Error as encode_target() does.
  void add(std::span<const float> logits);
  // The ids that the position added last may keep.
  std::vector<int32_t> candidates() const;
  // Decides what is still open.
  void finish();
  // The positions that are decided, from the first on.
  SparseTargets& targets() { return targets_; }

 private:
  TargetSpec spec_;
  uint64_t seed_, stream_;
  SparseTargets targets_;
  // Of positions that are still open: what they keep exactly, and what they may keep.
  SparseTargets exact_;
  std::vector<float> tail_weights_;
  std::vector<SharedToken> tails_;
};

}  // namespace distill::data
