#include "nn/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "kernels/softmax_row/softmax_row.h"

namespace distill::nn {
namespace {

constexpr double kSmallestTemperature = 1e-3;  // (logit - maximum) / temperature must stay a number

// Tokens sorted into bins by how far their scaled logit lies below the maximum. The last bin takes all the rest.
constexpr int kBins = 320;
constexpr float kBinsPerNat = 8;

int bin_of(float logit, float maximum, float scale) {
  return static_cast<int>(std::min((maximum - logit) * scale * kBinsPerNat, static_cast<float>(kBins - 1)));
}

// How many of the leading items of `weights` (a function of the index) it takes to reach `mass`; at least 1.
template <typename WeightOf>
size_t count_reaching(double mass, size_t size, WeightOf&& weight_of) {
  double sum = 0;
  for (size_t i = 0; i < size; ++i) {
    sum += weight_of(i);
    if (sum >= mass) return i + 1;
  }
  return size;
}

}  // namespace

void SamplingOptions::validate() const {
  if (!(temperature == 0 || (temperature >= kSmallestTemperature && std::isfinite(temperature)))) {
    core::fail_usage("temperature: must be 0 (greedy) or at least {}, is {}", kSmallestTemperature, temperature);
  }
  if (top_k < 0) core::fail_usage("top-k: must be 0 (no limit) or more, is {}", top_k);
  if (!(top_p > 0 && top_p <= 1)) core::fail_usage("top-p: must be above 0 and at most 1, is {}", top_p);
  if (!(min_p >= 0 && min_p <= 1)) core::fail_usage("min-p: must be between 0 and 1, is {}", min_p);
}

Draw Sampler::draw(std::span<const float> logits, const SamplingOptions& options, core::Philox random) {
  core::check(!logits.empty(), "cannot draw from an empty vocabulary");
  const auto maximum = kernels::row_maximum(logits);
  core::check(!maximum.has_nan && std::isfinite(maximum.value),
              "the model's logits are not numbers (NaN or infinite): are its weights damaged?");
  if (options.temperature == 0 || options.top_k == 1) return {.token = maximum.index, .log_probability = 0};

  weights_.resize(logits.size());
  chunk_sums_.resize(kernels::row_chunks(logits.size()));
  Row row{
      .logits = logits, .maximum = maximum.value, .scale = static_cast<float>(1.0 / options.temperature), .total = 0};
  kernels::row_exponentials(logits, row.maximum, row.scale, weights_, chunk_sums_);
  row.total = std::accumulate(chunk_sums_.begin(), chunk_sums_.end(), 0.0);
  const double uniform = random.next_double();

  const bool has_top_k = options.top_k > 0 && static_cast<size_t>(options.top_k) < logits.size();
  if (!has_top_k && options.top_p == 1 && options.min_p == 0) return draw_unfiltered(row, uniform);
  collect(row, options);
  filter(row, options);
  return draw_candidate(row, uniform);
}

bool Sampler::more_probable(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

Draw Sampler::draw_unfiltered(const Row& row, double uniform) const {
  double rest = uniform * row.total;
  size_t chunk = 0;
  while (chunk + 1 < chunk_sums_.size() && rest >= chunk_sums_[chunk]) rest -= chunk_sums_[chunk++];
  // Rounding may carry the walk past the last token of the chunk: the last one that can be drawn stands in.
  const size_t begin = chunk * kernels::kRowChunk;
  const size_t end = std::min(begin + kernels::kRowChunk, weights_.size());
  size_t chosen = weights_.size();
  for (size_t i = begin; i < end; ++i) {
    if (weights_[i] == 0) continue;
    chosen = i;
    if (rest < weights_[i]) break;
    rest -= weights_[i];
  }
  if (chosen == weights_.size()) chosen = kernels::row_maximum(row.logits).index;
  return {.token = static_cast<int32_t>(chosen),
          .log_probability = (static_cast<double>(row.logits[chosen]) - row.maximum) * row.scale - std::log(row.total)};
}

void Sampler::collect(const Row& row, const SamplingOptions& options) {
  std::array<int64_t, kBins> counts{};
  std::array<double, kBins> masses{};
  for (size_t i = 0; i < row.logits.size(); ++i) {
    const auto bin = static_cast<size_t>(bin_of(row.logits[i], row.maximum, row.scale));
    ++counts[bin];
    masses[bin] += weights_[i];
  }
  size_t bins = kBins;
  if (options.top_k > 0) {
    bins = count_reaching(static_cast<double>(options.top_k), bins, [&](size_t b) { return counts[b]; });
  }
  // Top-p after top-k is a share of all that top-k keeps, so then nothing of it may be left out here.
  if (options.top_k == 0 || options.top_p == 1) {
    bins = count_reaching(options.top_p * row.total, bins, [&](size_t b) { return masses[b]; });
    if (options.min_p > 0) bins = std::min(bins, static_cast<size_t>(-std::log(options.min_p) * kBinsPerNat) + 2);
  }
  candidates_.clear();
  for (size_t i = 0; i < row.logits.size(); ++i) {
    if (weights_[i] == 0 || static_cast<size_t>(bin_of(row.logits[i], row.maximum, row.scale)) >= bins) continue;
    candidates_.push_back({row.logits[i], weights_[i], static_cast<int32_t>(i)});
  }
}

void Sampler::filter(const Row& row, const SamplingOptions& options) {
  const auto begin = candidates_.begin();
  double total = row.total;
  if (options.top_k > 0) {
    const size_t kept = std::min(candidates_.size(), static_cast<size_t>(options.top_k));
    std::nth_element(begin, begin + static_cast<std::ptrdiff_t>(kept), candidates_.end(), more_probable);
    candidates_.resize(kept);
    total = 0;
    for (const auto& candidate : candidates_) total += candidate.weight;
  }
  if (options.top_p < 1) candidates_.resize(count_most_probable(options.top_p * total));
  if (options.min_p > 0) {
    std::erase_if(candidates_, [&](const Candidate& candidate) { return candidate.weight < options.min_p; });
  }
}

// Bisects by mass, so that only the last few candidates need an order.
size_t Sampler::count_most_probable(double mass) {
  constexpr size_t kSortable = 64;
  const auto at = [&](size_t i) { return candidates_.begin() + static_cast<std::ptrdiff_t>(i); };
  size_t begin = 0;
  size_t end = candidates_.size();
  while (end - begin > kSortable) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(at(begin), at(middle), at(end), more_probable);
    double upper = 0;
    for (size_t i = begin; i < middle; ++i) upper += candidates_[i].weight;
    if (upper >= mass) {
      end = middle;
    } else {
      mass -= upper;
      begin = middle;
    }
  }
  std::sort(at(begin), at(end), more_probable);
  return begin + count_reaching(mass, end - begin, [&](size_t i) { return candidates_[begin + i].weight; });
}

Draw Sampler::draw_candidate(const Row& row, double uniform) const {
  double total = 0;
  for (const auto& candidate : candidates_) total += candidate.weight;
  double rest = uniform * total;
  size_t chosen = 0;
  while (chosen + 1 < candidates_.size() && rest >= candidates_[chosen].weight) rest -= candidates_[chosen++].weight;
  const Candidate& drawn = candidates_[chosen];
  return {.token = drawn.id,
          .log_probability = (static_cast<double>(drawn.logit) - row.maximum) * row.scale - std::log(total)};
}

}  // namespace distill::nn
