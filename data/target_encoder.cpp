#include "data/target_encoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "kernels/multiversion.h"

namespace distill::data {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The greatest logit; NaN if one is NaN or +infinity.
DISTILL_MULTIVERSION float max_or_invalid(const float* logits, size_t count) {
  constexpr size_t kLanes = 16;  // so that the comparisons vectorise
  std::array<float, kLanes> greatest;
  std::array<int32_t, kLanes> invalid{};
  greatest.fill(-kInfinity);
  for (size_t i = 0; i + kLanes <= count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float logit = logits[i + lane];
      invalid[lane] |= !(logit < kInfinity);
      greatest[lane] = logit > greatest[lane] ? logit : greatest[lane];
    }
  }
  for (size_t i = count - count % kLanes; i < count; ++i) {
    invalid[0] |= !(logits[i] < kInfinity);
    greatest[0] = logits[i] > greatest[0] ? logits[i] : greatest[0];
  }
  if (std::ranges::count(invalid, 0) != kLanes) return std::numeric_limits<float>::quiet_NaN();
  return std::ranges::max(greatest);
}

// e^((logit - greatest) * scale) of each logit, and their sum.
DISTILL_MULTIVERSION double exponentials(const float* logits, size_t count, float greatest, float scale, float* out) {
  constexpr size_t kLanes = 16;    // partial sums, so that the additions vectorise
  constexpr size_t kBlock = 1024;  // summed in fp32; the blocks in fp64
  double sum = 0;
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t size = std::min(kBlock, count - begin);
    std::array<float, kLanes> lanes{};
    for (size_t i = 0; i < size; ++i) {
      const float logit = logits[begin + i];
      const float value = kernels::vector_exp((logit - greatest) * scale);
      out[begin + i] = logit == -kInfinity ? 0.0f : value;
      lanes[i % kLanes] += out[begin + i];
    }
    for (const float lane : lanes) sum += static_cast<double>(lane);
  }
  return sum;
}

// A distribution over the vocabulary, not normalised.
struct Distribution {
  std::vector<float> mass;
  double sum = 0;
  double probability(int32_t id) const { return static_cast<double>(mass[id]) / sum; }
};

Distribution softmax(std::span<const float> logits, double temperature) {
  const float greatest = max_or_invalid(logits.data(), logits.size());
  core::check(std::isfinite(greatest), "the model's logits contain NaN or infinities, or none is finite");
  Distribution result{std::vector<float>(logits.size()), 0};
  result.sum =
      exponentials(logits.data(), logits.size(), greatest, static_cast<float>(1 / temperature), result.mass.data());
  return result;
}

// Ids of the `count` greatest masses, descending, the lower id first where equal.
std::vector<int32_t> greatest_ids(const std::vector<float>& mass, size_t count) {
  // The heap's front is the least of those kept; an equal mass at a later, higher id does not replace it.
  const auto before = [&](int32_t a, int32_t b) { return mass[a] != mass[b] ? mass[a] > mass[b] : a < b; };
  count = std::min(count, mass.size());
  std::vector<int32_t> ids(count);
  std::iota(ids.begin(), ids.end(), 0);
  std::ranges::make_heap(ids, before);
  float least = mass[ids.front()];
  for (size_t id = count; id < mass.size(); ++id) {
    if (mass[id] <= least) continue;
    std::ranges::pop_heap(ids, before);
    ids.back() = static_cast<int32_t>(id);
    std::ranges::push_heap(ids, before);
    least = mass[ids.front()];
  }
  std::ranges::sort_heap(ids, before);
  return ids;
}

void add(SparseTargets& out, int32_t id, double weight) {
  out.ids.push_back(id);
  out.weights.push_back(static_cast<float>(weight));
}

void add_exact(const Distribution& p, std::span<const int32_t> ids, SparseTargets& out) {
  for (const int32_t id : ids) add(out, id, p.probability(id));
}

// Takes `ids` out of the distribution and returns the mass that remains, added up the way the sampling loops do.
double remove(Distribution& p, std::span<const int32_t> ids) {
  for (const int32_t id : ids) p.mass[id] = 0;
  double sum = 0;
  for (const float mass : p.mass) sum += static_cast<double>(mass);
  return sum;
}

// `count` independent draws from the masses, which sum to `sum`: a weight of `share` for each draw of a token.
void add_draws(const Distribution& p, double sum, int32_t count, double share, core::Philox& random,
               SparseTargets& out) {
  std::vector<double> points(static_cast<size_t>(count));
  for (double& point : points) point = random.next_double() * sum;
  std::ranges::sort(points);
  double cumulative = 0;
  size_t next = 0;
  for (size_t id = 0; id < p.mass.size() && next < points.size(); ++id) {
    cumulative += static_cast<double>(p.mass[id]);
    const size_t first = next;
    while (next < points.size() && points[next] < cumulative) ++next;
    if (next > first) add(out, static_cast<int32_t>(id), share * static_cast<double>(next - first));
  }
}

// `count` tokens at equal steps through the masses, which sum to `sum` and are each at most a step.
void add_systematic(const Distribution& p, double sum, size_t count, double weight, core::Philox& random,
                    SparseTargets& out) {
  const double step = sum / static_cast<double>(count), start = random.next_double() * step;
  double cumulative = 0;
  size_t taken = 0;
  for (size_t id = 0; id < p.mass.size() && taken < count; ++id) {
    cumulative += static_cast<double>(p.mass[id]);
    if (p.mass[id] == 0 || start + static_cast<double>(taken) * step >= cumulative) continue;
    add(out, static_cast<int32_t>(id), weight);
    ++taken;
  }
}

void encode_sampled(Distribution& p, int32_t draws, core::Philox& random, SparseTargets& out) {
  add_draws(p, remove(p, {}), draws, 1.0 / draws, random, out);
}

void encode_hybrid(Distribution& p, const TargetSpec& spec, core::Philox& random, SparseTargets& out) {
  const auto head = greatest_ids(p.mass, static_cast<size_t>(spec.exact));
  add_exact(p, head, out);
  const double tail = remove(p, head);
  if (tail > 0) add_draws(p, tail, spec.draws, tail / p.sum / spec.draws, random, out);
}

// With h tokens kept exactly, the threshold at which K tokens are kept is the rest's mass / (K - h); h is the least
// number with which no token of the rest lies above it. Given the threshold, K is the least number whose threshold is
// no higher.
void encode_threshold(Distribution& p, const TargetSpec& spec, core::Philox& random, SparseTargets& out) {
  auto count = static_cast<size_t>(spec.exact);
  const auto candidates = greatest_ids(p.mass, count);
  std::vector<float> masses;
  for (const int32_t id : candidates) masses.push_back(p.mass[id]);
  // Sums from the small masses up: next to a token that is nearly certain, differences would lose the rest.
  std::vector<double> rest(candidates.size() + 1, remove(p, candidates));
  for (size_t i = candidates.size(); i-- > 0;) rest[i] = rest[i + 1] + static_cast<double>(masses[i]);
  p.sum = rest[0];
  if (spec.threshold > 0) {
    // The tokens above it, and of the others as many as steps of at most the threshold reach.
    const double threshold = spec.threshold * p.sum;
    size_t above = 0;
    while (above < candidates.size() && static_cast<double>(masses[above]) > threshold) ++above;
    count = above + static_cast<size_t>(std::ceil(rest[above] / threshold));
  }
  size_t exact = 0;
  while (exact < std::min(count, candidates.size()) &&
         static_cast<double>(masses[exact]) * static_cast<double>(count - exact) > rest[exact]) {
    add(out, candidates[exact], static_cast<double>(masses[exact]) / p.sum);
    ++exact;
  }
  if (exact == count || rest[exact] == 0) return;
  for (size_t i = exact; i < candidates.size(); ++i) p.mass[candidates[i]] = masses[i];
  const auto draws = static_cast<double>(count - exact);
  add_systematic(p, remove(p, {}), count - exact, rest[exact] / p.sum / draws, random, out);
}

// The mass of what has no id, and the end of the position. An unbiased target leaves nothing: its weights are scaled to
// sum to 1, which undoes the rounding of sums only.
void finish(const TargetSpec& spec, SparseTargets& out) {
  const auto begin = static_cast<size_t>(out.offsets.back());
  double covered = 0;
  for (size_t i = begin; i < out.weights.size(); ++i) covered += static_cast<double>(out.weights[i]);
  if (spec.mode != TargetMode::kTopk) {
    for (size_t i = begin; i < out.weights.size(); ++i) {
      out.weights[i] = static_cast<float>(static_cast<double>(out.weights[i]) / covered);
    }
    covered = 1;
  }
  out.offsets.push_back(static_cast<int64_t>(out.ids.size()));
  out.uncovered.push_back(static_cast<float>(std::max(0.0, 1 - covered)));
}

}  // namespace

uint64_t target_stream(const TraceKey& key) {
  constexpr uint64_t kTargets = uint64_t{1} << 32;  // the tokens are drawn from stream_id(prompt id, sample)
  return core::stream_id(key.prompt_id, kTargets + key.sample);
}

core::Philox target_draws(uint64_t seed, const TraceKey& key, uint64_t position) {
  return {seed, target_stream(key), position};
}

void encode_target(std::span<const float> logits, const TargetSpec& spec, core::Philox& draws, SparseTargets& out) {
  Distribution p = softmax(logits, spec.temperature);
  switch (spec.mode) {
    case TargetMode::kTopk:
      add_exact(p, greatest_ids(p.mass, static_cast<size_t>(spec.exact)), out);
      break;
    case TargetMode::kFull:
      for (size_t id = 0; id < logits.size(); ++id)
        add(out, static_cast<int32_t>(id), p.probability(static_cast<int32_t>(id)));
      break;
    case TargetMode::kSampled:
      encode_sampled(p, spec.draws, draws, out);
      break;
    case TargetMode::kHybrid:
      encode_hybrid(p, spec, draws, out);
      break;
    case TargetMode::kThreshold:
      encode_threshold(p, spec, draws, out);
      break;
  }
  finish(spec, out);
}

void encode_target(std::span<const float> logits, const TargetSpec& spec, SparseTargets& out) {
  core::check(!spec.random(), "{} targets need random draws", spec.to_string());
  core::Philox unused(0, 0, 0);
  encode_target(logits, spec, unused, out);
}

}  // namespace distill::data
