#include "data/target_encoder.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "kernels/softmax_row/softmax_row.h"

namespace distill::data {
namespace {

using kernels::kRowChunk;

// A distribution over the vocabulary, not normalised, with its sums over chunks, so that draws skip from one to the
// next.
struct Distribution {
  std::vector<float> mass;
  std::vector<float> chunk_sums;
  double sum = 0;  // of all masses as they were at first

  double probability(int32_t id) const { return static_cast<double>(mass[id]) / sum; }
  double remaining() const { return std::accumulate(chunk_sums.begin(), chunk_sums.end(), 0.0); }
  // Masses of one chunk.
  std::span<const float> chunk(size_t index) const {
    const size_t begin = index * kRowChunk;
    return std::span(mass).subspan(begin, std::min(kRowChunk, mass.size() - begin));
  }
  void set(int32_t id, float value) {
    mass[id] = value;
    const size_t index = static_cast<size_t>(id) / kRowChunk;
    const auto own = chunk(index);
    chunk_sums[index] = static_cast<float>(std::accumulate(own.begin(), own.end(), 0.0));
  }
};

// Ids of the `count` greatest logits, descending, the lower id first where equal.
std::vector<int32_t> greatest_ids(std::span<const float> logits, size_t count, std::span<const float> chunk_maxima) {
  // As many logits as there are chunks reach their chunk's maximum, so the count-th greatest maximum bounds what is
  // kept.
  float bound = -std::numeric_limits<float>::infinity();
  if (count <= chunk_maxima.size()) {
    std::vector<float> maxima(chunk_maxima.begin(), chunk_maxima.end());
    const auto last = maxima.begin() + static_cast<ptrdiff_t>(count) - 1;
    std::ranges::nth_element(maxima, last, std::greater<>());
    bound = *last;
  }
  std::vector<int32_t> ids;
  for (size_t chunk = 0; chunk < chunk_maxima.size(); ++chunk) {
    if (chunk_maxima[chunk] < bound) continue;
    const size_t end = std::min((chunk + 1) * kRowChunk, logits.size());
    for (size_t id = chunk * kRowChunk; id < end; ++id) {
      if (logits[id] >= bound) ids.push_back(static_cast<int32_t>(id));
    }
  }
  const auto before = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  if (count < ids.size()) {
    std::ranges::nth_element(ids, ids.begin() + static_cast<ptrdiff_t>(count), before);
    ids.resize(count);
  }
  std::ranges::sort(ids, before);
  return ids;
}

void add(SparseTargets& out, int32_t id, double weight) {
  out.ids.push_back(id);
  out.weights.push_back(static_cast<float>(weight));
}

void add_exact(const Distribution& p, std::span<const int32_t> ids, SparseTargets& out) {
  for (const int32_t id : ids) add(out, id, p.probability(id));
}

// Takes `ids` out of the distribution and returns the mass that remains.
double remove(Distribution& p, std::span<const int32_t> ids) {
  for (const int32_t id : ids) p.set(id, 0);
  return p.remaining();
}

// Lays the masses end to end and hands each token that holds points to `hit` with their number. `points` ascend. The
// last rounding may leave points behind the end.
template <typename Hit>
void find_tokens(const Distribution& p, std::span<const double> points, Hit&& hit) {
  double begin = 0;
  size_t next = 0;
  for (size_t chunk = 0; chunk < p.chunk_sums.size() && next < points.size(); ++chunk) {
    const double end = begin + static_cast<double>(p.chunk_sums[chunk]);
    if (points[next] < end) {
      double cumulative = begin;
      const auto masses = p.chunk(chunk);
      for (size_t i = 0; i < masses.size() && next < points.size(); ++i) {
        cumulative += static_cast<double>(masses[i]);
        const size_t first = next;
        while (next < points.size() && masses[i] > 0 && points[next] < cumulative) ++next;
        if (next > first) hit(static_cast<int32_t>(chunk * kRowChunk + i), next - first);
      }
    }
    begin = end;
  }
}

// `count` independent draws from the masses, which sum to `sum`: a weight of `share` for each draw of a token.
void add_draws(const Distribution& p, double sum, int32_t count, double share, core::Philox& random,
               SparseTargets& out) {
  std::vector<double> points(static_cast<size_t>(count));
  for (double& point : points) point = random.next_double() * sum;
  std::ranges::sort(points);
  find_tokens(p, points, [&](int32_t id, size_t hits) { add(out, id, share * static_cast<double>(hits)); });
}

// Deals `count` tokens' shares at equal steps through the masses, which sum to `sum` and are each at most as long as
// all shares of a token.
void deal_shares(const Distribution& p, double sum, size_t count, core::Philox& random,
                 std::vector<SharedToken>& tokens) {
  std::vector<double> points(count * kSharesPerToken);
  const double step = sum / static_cast<double>(points.size()), start = random.next_double() * step;
  for (size_t i = 0; i < points.size(); ++i) points[i] = start + static_cast<double>(i) * step;
  size_t left = points.size();
  find_tokens(p, points, [&](int32_t id, size_t hits) {
    const auto shares = std::min<size_t>(hits, kSharesPerToken);
    tokens.push_back({.position = 0, .id = id, .shares = static_cast<uint8_t>(shares)});
    left -= shares;
  });
  // Rounding may make a token a hair longer than it should be, or leave points behind the end.
  for (auto token = tokens.rbegin(); left > 0 && token != tokens.rend(); ++token) {
    const auto more = std::min<size_t>(left, kSharesPerToken - token->shares);
    token->shares = static_cast<uint8_t>(token->shares + more);
    left -= more;
  }
}

void encode_hybrid(Distribution& p, std::span<const int32_t> head, const TargetSpec& spec, core::Philox& random,
                   SparseTargets& out) {
  add_exact(p, head, out);
  const double tail = remove(p, head);
  if (tail > 0) add_draws(p, tail, spec.draws, tail / p.sum / spec.draws, random, out);
}

// With h tokens kept exactly, the threshold at which K tokens are kept is the rest's mass / (K - h); h is the least
// number with which no token of the rest lies above it. Given the threshold, K is the least number whose threshold is
// no higher. `candidates` are as many of the most probable tokens as may be kept.
void encode_threshold(Distribution& p, std::span<const int32_t> candidates, const TargetSpec& spec,
                      core::Philox& random, SparseTargets& out, SharedTail& tail) {
  std::vector<float> masses;
  for (const int32_t id : candidates) masses.push_back(p.mass[id]);
  std::vector<std::pair<int32_t, float>> kept;  // exactly, with their masses
  double always = 0;
  for (const int32_t id : spec.keep) {
    kept.emplace_back(id, p.mass[id]);
    always += static_cast<double>(p.mass[id]);
  }
  remove(p, spec.keep);
  // Sums from the small masses up: next to a token that is nearly certain, differences would lose the rest.
  std::vector<double> rest(candidates.size() + 1, remove(p, candidates));
  for (size_t i = candidates.size(); i-- > 0;) rest[i] = rest[i + 1] + static_cast<double>(masses[i]);
  p.sum = rest[0] + always;
  auto count = static_cast<size_t>(spec.exact);
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
    kept.emplace_back(candidates[exact], masses[exact]);
    ++exact;
  }
  std::ranges::sort(kept, [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  for (const auto& [id, mass] : kept) add(out, id, static_cast<double>(mass) / p.sum);
  if (exact == count || rest[exact] == 0) return;
  for (size_t i = exact; i < candidates.size(); ++i) p.set(candidates[i], masses[i]);
  tail.weight = static_cast<float>(rest[exact] / p.sum / static_cast<double>(count - exact));
  deal_shares(p, p.remaining(), count - exact, random, tail.tokens);
}

// The mass of what has no id, and the end of the position. The weights of draws are scaled to sum to 1, which undoes
// the rounding of sums only.
void finish(const TargetSpec& spec, SparseTargets& out) {
  const auto weights = std::span(out.weights).subspan(static_cast<size_t>(out.offsets.back()));
  const double covered = std::accumulate(weights.begin(), weights.end(), 0.0);
  const bool topk = spec.mode == TargetMode::kTopk;
  if (!topk && spec.mode != TargetMode::kThreshold) {
    for (float& weight : weights) weight = static_cast<float>(static_cast<double>(weight) / covered);
  }
  out.offsets.push_back(static_cast<int64_t>(out.ids.size()));
  out.uncovered.push_back(topk ? static_cast<float>(std::max(0.0, 1 - covered)) : 0);
}

}  // namespace

uint64_t target_stream(const TraceKey& key) {
  constexpr uint64_t kTargets = uint64_t{1} << 32;  // the tokens are drawn from stream_id(prompt id, sample)
  return core::stream_id(key.prompt_id, kTargets + key.sample);
}

core::Philox target_draws(uint64_t seed, uint64_t stream, uint64_t position) {
  return {seed, stream, position};
}

core::Philox tail_draws(uint64_t seed, uint64_t stream, uint64_t position) {
  constexpr uint64_t kTails = uint64_t{1} << 30;  // the targets' own draws use small positions
  return {seed, stream, position | kTails};
}

core::Philox rounding_draws(uint64_t seed, uint64_t stream, uint64_t position) {
  constexpr uint64_t kRounding = uint64_t{1} << 31;
  return {seed, stream, position | kRounding};
}

void encode_target(std::span<const float> logits, const TargetSpec& spec, core::Philox& draws, SparseTargets& out,
                   SharedTail& tail) {
  std::vector<float> chunk_maxima(kernels::row_chunks(logits.size()));
  const auto maximum = kernels::row_maximum(logits, chunk_maxima);
  core::check(!maximum.has_nan && std::isfinite(maximum.value),
              "the model's logits contain NaN or infinities, or none is finite");
  Distribution p{std::vector<float>(logits.size()), std::vector<float>(chunk_maxima.size())};
  kernels::row_exponentials(logits, maximum.value, static_cast<float>(1 / spec.temperature), p.mass, p.chunk_sums);
  p.sum = p.remaining();
  // Of the ids that are not kept anyway.
  const auto greatest = [&] {
    const size_t exact = static_cast<size_t>(spec.exact) + spec.keep.size();
    auto ids = greatest_ids(logits, std::min(exact, logits.size()), chunk_maxima);
    std::erase_if(ids, [&](int32_t id) { return std::ranges::binary_search(spec.keep, id); });
    ids.resize(std::min(ids.size(), static_cast<size_t>(spec.exact)));
    return ids;
  };
  // Those and the ones that are kept anyway.
  const auto head = [&] {
    auto ids = greatest();
    ids.insert(ids.end(), spec.keep.begin(), spec.keep.end());
    std::ranges::sort(ids,
                      [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
    return ids;
  };
  switch (spec.mode) {
    case TargetMode::kTopk:
      add_exact(p, head(), out);
      break;
    case TargetMode::kFull:
      for (size_t id = 0; id < logits.size(); ++id)
        add(out, static_cast<int32_t>(id), p.probability(static_cast<int32_t>(id)));
      break;
    case TargetMode::kSampled:
      add_draws(p, p.sum, spec.draws, 1.0 / spec.draws, draws, out);
      break;
    case TargetMode::kHybrid:
      encode_hybrid(p, head(), spec, draws, out);
      break;
    case TargetMode::kThreshold:
      encode_threshold(p, greatest(), spec, draws, out, tail);
      break;
  }
  finish(spec, out);
}

void encode_target(std::span<const float> logits, const TargetSpec& spec, core::Philox& draws, SparseTargets& out) {
  SharedTail tail;
  encode_target(logits, spec, draws, out, tail);
  round_balanced(tail.tokens, draws);
  for (const SharedToken& token : tail.tokens) {
    if (token.shares > 0) add(out, token.id, static_cast<double>(tail.weight));
  }
  out.offsets.back() = static_cast<int64_t>(out.ids.size());
}

void encode_target(std::span<const float> logits, const TargetSpec& spec, SparseTargets& out) {
  core::check(!spec.random(), "{} targets need random draws", spec.to_string());
  core::Philox unused(0, 0, 0);
  encode_target(logits, spec, unused, out);
}

}  // namespace distill::data
