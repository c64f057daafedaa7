// What a capture does with each row of a teacher's logits: keep the target, and measure what that loses.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <utility>
#include <vector>

#include "data/target_distribution.h"
#include "data/target_sampler.h"
#include "data/trace.h"

namespace distill::data {

// The targets of one completion while it is being made.
class TargetCapture {
 public:
  // The gradient of a head's matrix is a sum of hidden ⊗ (covered · q − w), too large to keep. Its sketch keeps
  // kFeatures linear functions of the hidden state and, by random signs, kBuckets sums over the vocabulary: angles and
  // ratios of norms come out the same but for a few percent.
  static constexpr size_t kFeatures = 8, kBuckets = kSketch / kFeatures;

  // `provenance` has to outlive it.
  TargetCapture(const TraceProvenance& provenance, const TraceKey& key);

  // The completion's next position: keeps its target (target_sampler.h), with the draws that belong to it, and every
  // kFidelityStride-th time measures how well it stands for all of logits [vocab], rounded as a shard will store it.
  // Throws Error if the logits are not a distribution.
  void add(std::span<const float> logits);
  // The targets of all positions and their fidelity.
  SparseTargets finish();

 private:
  // A position whose target may not be decided yet: what of the whole distribution its measure needs.
  struct Measured {
    uint64_t position;
    std::array<double, kFeatures> hidden;
    std::array<float, kBuckets> student;           // q
    std::vector<std::pair<int32_t, double>> kept;  // ids that may be, ascending, and their probabilities
  };

  void measure_decided();
  void measure(const Measured& whole);

  const TraceProvenance& provenance_;
  uint64_t stream_;  // of its random numbers
  TargetSampler sampler_;
  uint64_t positions_ = 0;
  std::deque<Measured> open_;
  DocumentFidelity fidelity_;
};

}  // namespace distill::data
