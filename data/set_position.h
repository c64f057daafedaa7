// One stored position reduced to its essence.
#pragma once

#include <cstdint>
#include <vector>

#include "core/philox.h"
#include "data/target_distribution.h"
#include "data/target_spec.h"
#include "data/weight_grid.h"

namespace distill::data {

// `head` tokens in stored order, each with a level on the grid: the share it has of what the heads before it left.
// The `tail` tokens share what all heads left in proportion to their counts; without a tail it is left uncovered,
// except that in an unbiased mode the last head then takes all (and its level is the highest).
struct SetPosition {
  std::vector<int32_t> head, tail;
  std::vector<uint32_t> levels;  // [head]
  std::vector<uint32_t> counts;  // [tail]
  std::vector<double> rests;     // [head], what each head and all after it weigh together

  void clear() {
    head.clear();
    tail.clear();
    levels.clear();
    counts.clear();
  }
};

// Bits of a level. Shares of a long list are small and their errors add up; a few heads before a random tail need no
// more than the tail's own noise.
unsigned weight_bits(const TargetSpec& spec);

// The most ids that a position of this mode can have.
uint32_t max_ids(const TargetSpec& spec);

// From ids and weights as encode_target() orders them. Throws Error if they are not of this mode.
void reduce(const TargetDistribution& target, const TargetSpec& spec, const WeightGrid& grid, core::Philox& random,
            SetPosition& out);

// One position as it will be read back.
struct StoredPosition {
  std::vector<int32_t> ids;
  std::vector<double> weights;
  double uncovered = 0;
};
StoredPosition as_stored(const TargetDistribution& target, const TargetSpec& spec, core::Philox& random);

}  // namespace distill::data
