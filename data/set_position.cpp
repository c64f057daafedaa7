#include "data/set_position.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace distill::data {
namespace {

// How many of the ids come with a weight of their own.
size_t count_heads(const TargetDistribution& target, const TargetSpec& spec) {
  const size_t ids = target.ids.size();
  switch (spec.mode) {
    case TargetMode::kTopk:
      return ids;
    case TargetMode::kHybrid:
      return std::min(ids, static_cast<size_t>(spec.exact) + spec.keep.size());
    case TargetMode::kThreshold: {
      // All drawn tokens have one weight. If none was drawn, the last head plays the tail: its weight follows likewise.
      size_t heads = ids;
      while (heads > 0 && target.weights[heads - 1] == target.weights[ids - 1]) --heads;
      return heads;
    }
    case TargetMode::kSampled:
    case TargetMode::kFull:
      break;
  }
  return 0;
}

}  // namespace

unsigned weight_bits(const TargetSpec& spec) {
  return spec.mode == TargetMode::kTopk ? 9 : 6;
}

uint32_t max_ids(const TargetSpec& spec) {
  return static_cast<uint32_t>(spec.exact) + static_cast<uint32_t>(spec.draws) +
         static_cast<uint32_t>(spec.keep.size());
}

void reduce(const TargetDistribution& target, const TargetSpec& spec, const WeightGrid& grid, core::Philox& random,
            SetPosition& out) {
  const size_t ids = target.ids.size(), heads = count_heads(target, spec);
  core::check(ids <= max_ids(spec) && spec.mode != TargetMode::kFull, "{} ids in a position of {} targets", ids,
              spec.to_string());
  out.clear();
  out.head.assign(target.ids.begin(), target.ids.begin() + static_cast<ptrdiff_t>(heads));
  out.tail.assign(target.ids.begin() + static_cast<ptrdiff_t>(heads), target.ids.end());

  double tail = 0;
  for (size_t i = heads; i < ids; ++i) tail += static_cast<double>(target.weights[i]);
  for (size_t i = heads; i < ids; ++i) {
    const bool drawn = spec.mode != TargetMode::kThreshold && tail > 0;
    const double count = drawn ? static_cast<double>(target.weights[i]) / tail * spec.draws : 1;
    out.counts.push_back(static_cast<uint32_t>(std::max(1L, std::lround(count))));
  }

  // Summed from the end: next to a weight of nearly 1, a difference would lose what little is left.
  out.rests.resize(heads);
  double sum = tail + static_cast<double>(target.uncovered);
  for (size_t i = heads; i-- > 0;) out.rests[i] = sum += static_cast<double>(target.weights[i]);
  for (size_t i = 0; i < heads; ++i) {
    const auto weight = static_cast<double>(target.weights[i]);
    const double rest = out.rests[i];
    const bool takes_all = i + 1 == heads && out.tail.empty() && spec.random();
    out.levels.push_back(takes_all ? grid.levels() - 1 : grid.round(rest > 0 ? weight / rest : 0, random));
    if (out.levels.back() + 1 < grid.levels()) continue;
    // Nothing is left for the others: their weights are zero, and they need not be stored.
    out.head.resize(i + 1);
    out.tail.clear();
    out.counts.clear();
    break;
  }
  // A last head that takes all is a tail of one.
  if (spec.mode == TargetMode::kThreshold && out.tail.empty() && !out.head.empty()) {
    out.tail.push_back(out.head.back());
    out.counts.push_back(1);
    out.head.pop_back();
    out.levels.pop_back();
  }
}

StoredPosition as_stored(const TargetDistribution& target, const TargetSpec& spec, core::Philox& random) {
  StoredPosition result{.ids = {}, .weights = {}, .uncovered = static_cast<double>(target.uncovered)};
  if (spec.mode == TargetMode::kFull) {
    result.ids.assign(target.ids.begin(), target.ids.end());
    result.weights.assign(target.weights.begin(), target.weights.end());
    return result;
  }
  const WeightGrid& grid = WeightGrid::of(weight_bits(spec));
  SetPosition set;
  reduce(target, spec, grid, random, set);
  double rest = 1;
  for (size_t i = 0; i < set.head.size(); ++i) {
    result.ids.push_back(set.head[i]);
    result.weights.push_back(rest * grid.share(set.levels[i]));
    rest -= result.weights.back();
  }
  const auto counts = std::accumulate(set.counts.begin(), set.counts.end(), 0.0);
  for (size_t i = 0; i < set.tail.size(); ++i) {
    result.ids.push_back(set.tail[i]);
    result.weights.push_back(rest * set.counts[i] / counts);
  }
  result.uncovered = set.tail.empty() ? rest : 0;
  return result;
}

}  // namespace distill::data
