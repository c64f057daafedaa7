// The teacher's distribution over the next token as a student meets it, whatever way it was stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "data/target_fidelity.h"

namespace distill::data {

// One position, viewed inside SparseTargets.
struct TargetDistribution {
  std::span<const int32_t> ids;    // distinct, in no particular order
  std::span<const float> weights;  // probabilities (of an unbiased mode: unbiased estimates of them), one per id
  float uncovered = 0;             // probability of all tokens that have no id here; weights and it sum to 1
};

// Consecutive positions in compressed sparse rows: position i has ids and weights [offsets[i], offsets[i + 1]).
struct SparseTargets {
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> ids;
  std::vector<float> weights;
  std::vector<float> uncovered;
  // How well they stand for the whole distributions; nothing if that was not measured, or they come from a shard.
  std::optional<DocumentFidelity> fidelity;

  size_t positions() const { return uncovered.size(); }
  TargetDistribution operator[](size_t position) const {
    const auto begin = static_cast<size_t>(offsets[position]);
    const auto count = static_cast<size_t>(offsets[position + 1]) - begin;
    return {std::span(ids).subspan(begin, count), std::span(weights).subspan(begin, count), uncovered[position]};
  }
  // Adds the positions of another after its own; what is known of their fidelity is not added up.
  void append(const SparseTargets& other) {
    const int64_t base = offsets.back();
    for (size_t i = 1; i < other.offsets.size(); ++i) offsets.push_back(base + other.offsets[i]);
    ids.insert(ids.end(), other.ids.begin(), other.ids.end());
    weights.insert(weights.end(), other.weights.begin(), other.weights.end());
    uncovered.insert(uncovered.end(), other.uncovered.begin(), other.uncovered.end());
  }
  void clear() {
    offsets.resize(1);
    ids.clear();
    weights.clear();
    uncovered.clear();
    fidelity.reset();
  }
};

}  // namespace distill::data
