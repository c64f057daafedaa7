#include "nn/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "kernels/softmax_row/softmax_row.h"

namespace distill::nn {
namespace {

constexpr double kRoundingSlack = 1e-3;        // natural logarithm; far above what rounding moves a weight by
constexpr double kSmallestTemperature = 1e-3;  // (logit - maximum) / temperature must stay a number

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
  chunk_maxima_.resize(kernels::row_chunks(logits.size()));
  const auto maximum = kernels::row_maximum(logits, chunk_maxima_);
  core::check(!maximum.has_nan && std::isfinite(maximum.value),
              "the model's logits are not numbers (NaN or infinite): are its weights damaged?");
  if (options.temperature == 0 || options.top_k == 1) return {.token = maximum.index, .log_probability = 0};

  weights_.resize(logits.size());
  chunk_sums_.resize(kernels::row_chunks(logits.size()));
  Row row{.logits = logits,
          .maximum = maximum.value,
          .most_probable = static_cast<size_t>(maximum.index),
          .scale = static_cast<float>(1.0 / options.temperature),
          .total = 0};
  kernels::row_exponentials(logits, row.maximum, row.scale, weights_, chunk_sums_);
  row.total = std::accumulate(chunk_sums_.begin(), chunk_sums_.end(), 0.0);
  const double uniform = random.next_double();

  const bool has_top_k = options.top_k > 0 && static_cast<size_t>(options.top_k) < logits.size();
  if (!has_top_k && options.top_p == 1 && options.min_p == 0) return draw_unfiltered(row, uniform);
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
  // Rounding may carry the walk past the last token of the chunk: the last one there that can be drawn stands in.
  const size_t begin = chunk * kernels::kRowChunk;
  const size_t end = std::min(begin + kernels::kRowChunk, weights_.size());
  size_t chosen = row.most_probable;
  for (size_t i = begin; i < end; ++i) {
    if (weights_[i] == 0) continue;
    chosen = i;
    if (rest < weights_[i]) break;
    rest -= weights_[i];
  }
  return {.token = static_cast<int32_t>(chosen),
          .log_probability = (static_cast<double>(row.logits[chosen]) - row.maximum) * row.scale - std::log(row.total)};
}

float Sampler::lower_bound(const Row& row, const SamplingOptions& options) {
  double bound = -std::numeric_limits<double>::infinity();
  // At least k tokens reach the k-th largest of the chunks' maxima.
  const auto k = static_cast<size_t>(options.top_k);
  if (k > 0 && k <= chunk_maxima_.size()) {
    sorted_maxima_ = chunk_maxima_;
    const auto kth = sorted_maxima_.begin() + options.top_k - 1;
    std::nth_element(sorted_maxima_.begin(), kth, sorted_maxima_.end(), std::greater<>());
    bound = *kth;
  }
  // Top-p after top-k is a share of all that top-k keeps, so then nothing of it may be left out here.
  if (k > 0 && options.top_p < 1) return static_cast<float>(bound);
  // All tokens whose weight is below a 1/vocab of the mass that may be left out have less than that mass together.
  double weight = options.min_p;
  if (options.top_p < 1) {
    weight = std::max(weight, (1 - options.top_p) * row.total / static_cast<double>(row.logits.size()));
  }
  if (weight > 0) bound = std::max(bound, row.maximum + (std::log(weight) - kRoundingSlack) / row.scale);
  return static_cast<float>(bound);
}

void Sampler::filter(const Row& row, const SamplingOptions& options) {
  const float bound = lower_bound(row, options);
  candidates_.clear();
  for (size_t chunk = 0; chunk < chunk_maxima_.size(); ++chunk) {
    if (chunk_maxima_[chunk] < bound) continue;
    const size_t begin = chunk * kernels::kRowChunk;
    const size_t end = std::min(begin + kernels::kRowChunk, row.logits.size());
    for (size_t i = begin; i < end; ++i) {
      if (row.logits[i] < bound || weights_[i] == 0) continue;
      candidates_.push_back({row.logits[i], weights_[i], static_cast<int32_t>(i)});
    }
  }
  double total = row.total;
  if (options.top_k > 0) {
    const size_t kept = std::min(candidates_.size(), static_cast<size_t>(options.top_k));
    const auto begin = candidates_.begin();
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
