#include "data/target_encoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/multiversion.h"
#include "kernels/softmax_row/softmax_row.h"

namespace distill::data {
namespace {

// Sum of e^((logit - greatest) / temperature).
DISTILL_MULTIVERSION double sum_of_exponentials(const float* logits, size_t count, float greatest, float scale) {
  constexpr size_t kLanes = 16;    // partial sums, so that the additions vectorise
  constexpr size_t kBlock = 1024;  // summed in fp32; the blocks in fp64
  double sum = 0;
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t size = std::min(kBlock, count - begin);
    std::array<float, kLanes> lanes{};
    for (size_t i = 0; i < size; ++i) {
      const float logit = logits[begin + i];
      const float value = kernels::vector_exp((logit - greatest) * scale);
      lanes[i % kLanes] += logit == -std::numeric_limits<float>::infinity() ? 0.0f : value;
    }
    for (const float lane : lanes) sum += static_cast<double>(lane);
  }
  return sum;
}

// Ids of the `count` greatest logits, in descending order, the lower id first where equal.
std::vector<int32_t> greatest_ids(std::span<const float> logits, size_t count, std::vector<float> chunk_maxima) {
  // As many logits as there are chunks reach their chunk's maximum, so the count-th greatest maximum bounds what is
  // kept.
  float bound = -std::numeric_limits<float>::infinity();
  if (count <= chunk_maxima.size()) {
    const auto last = chunk_maxima.begin() + static_cast<ptrdiff_t>(count) - 1;
    std::ranges::nth_element(chunk_maxima, last, std::greater<>());
    bound = *last;
  }
  std::vector<int32_t> ids;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] >= bound) ids.push_back(static_cast<int32_t>(id));
  }
  const auto before = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  if (count < ids.size()) {
    std::ranges::nth_element(ids, ids.begin() + static_cast<ptrdiff_t>(count), before);
    ids.resize(count);
  }
  std::ranges::sort(ids, before);
  return ids;
}

}  // namespace

void encode_target(std::span<const float> logits, const TargetSpec& spec, SparseTargets& out) {
  std::vector<float> chunk_maxima(kernels::row_chunks(logits.size()));
  const auto maximum = kernels::row_maximum(logits, chunk_maxima);
  const float greatest = maximum.value;
  core::check(!maximum.has_nan && std::isfinite(greatest),
              "the model's logits contain NaN or infinities, or none is finite");
  const auto scale = static_cast<float>(1 / spec.temperature);
  const double sum = sum_of_exponentials(logits.data(), logits.size(), greatest, scale);
  const auto probability = [&](float logit) {
    return std::exp(static_cast<double>(logit - greatest) / spec.temperature) / sum;
  };

  double covered = 0;
  if (spec.mode == TargetMode::kFull) {
    for (size_t id = 0; id < logits.size(); ++id) {
      out.ids.push_back(static_cast<int32_t>(id));
      out.weights.push_back(static_cast<float>(probability(logits[id])));
    }
    covered = 1;
  } else {
    for (const int32_t id : greatest_ids(logits, static_cast<size_t>(spec.exact), std::move(chunk_maxima))) {
      const double p = probability(logits[id]);
      covered += p;
      out.ids.push_back(id);
      out.weights.push_back(static_cast<float>(p));
    }
  }
  out.offsets.push_back(static_cast<int64_t>(out.ids.size()));
  out.uncovered.push_back(static_cast<float>(std::max(0.0, 1 - covered)));
}

}  // namespace distill::data
