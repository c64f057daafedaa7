#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <span>
#include <tuple>
#include <vector>

#include "kernels/moe_router/moe_router.h"

namespace distill::kernels {
namespace {

constexpr float kNormaliseEpsilon = 1e-20f;  // as in DeepSeek's code

// Indices of the `count` largest values among `candidates`, largest first, of equal ones the first.
void choose_largest(std::span<const float> values, int64_t count, std::vector<int32_t>& candidates) {
  const auto middle = candidates.begin() + count;
  std::partial_sort(candidates.begin(), middle, candidates.end(), [&](int32_t a, int32_t b) {
    const float x = values[static_cast<size_t>(a)];
    const float y = values[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  });
  candidates.resize(static_cast<size_t>(count));
}

void score_softmax(std::span<const float> logits, std::span<float> scores) {
  const float largest = *std::ranges::max_element(logits);
  float sum = 0;
  for (size_t e = 0; e < logits.size(); ++e) sum += scores[e] = std::exp(logits[e] - largest);
  for (float& score : scores) score /= sum;
}

void score_sigmoid(std::span<const float> logits, std::span<float> scores) {
  for (size_t e = 0; e < logits.size(); ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
}

float group_score(std::span<const float> group, GroupScoring scoring) {
  float first = -INFINITY;
  float second = -INFINITY;
  for (const float value : group) {
    second = std::max(second, std::min(first, value));
    first = std::max(first, value);
  }
  return scoring == GroupScoring::kMaximum || group.size() == 1 ? first : first + second;
}

// One token at a time; keeps its scratch.
class TokenRouter {
 public:
  TokenRouter(const RouterOptions& options, const float* bias, int64_t experts)
      : options_(options), bias_(bias), scores_(static_cast<size_t>(experts)), preferences_(scores_.size()) {}

  void route(std::span<const float> logits, int32_t* experts, float* gates) {
    for (const float logit : logits) TORCH_CHECK(!std::isnan(logit), "moe_router: a logit is NaN");
    (options_.scoring == RouterScoring::kSoftmax ? score_softmax : score_sigmoid)(logits, scores_);
    for (size_t e = 0; e < scores_.size(); ++e) preferences_[e] = scores_[e] + (bias_ ? bias_[e] : 0.0f);
    find_candidates();
    choose_largest(preferences_, options_.experts_per_token, candidates_);
    float sum = 0;
    for (size_t i = 0; i < candidates_.size(); ++i) sum += gates[i] = scores_[static_cast<size_t>(candidates_[i])];
    const float factor = static_cast<float>(options_.scaling) / (options_.normalise ? sum + kNormaliseEpsilon : 1.0f);
    for (size_t i = 0; i < candidates_.size(); ++i) {
      experts[i] = candidates_[i];
      gates[i] *= factor;
    }
  }

 private:
  // The experts of the best groups.
  void find_candidates() {
    const auto experts = static_cast<int64_t>(scores_.size());
    const int64_t size = experts / options_.groups;
    candidates_.clear();
    if (options_.groups_per_token == options_.groups) {
      candidates_.resize(scores_.size());
      std::iota(candidates_.begin(), candidates_.end(), 0);
      return;
    }
    group_scores_.clear();
    groups_.resize(static_cast<size_t>(options_.groups));
    std::iota(groups_.begin(), groups_.end(), 0);
    for (int64_t g = 0; g < options_.groups; ++g) {
      group_scores_.push_back(
          group_score(std::span(preferences_).subspan(static_cast<size_t>(g * size), static_cast<size_t>(size)),
                      options_.group_scoring));
    }
    choose_largest(group_scores_, options_.groups_per_token, groups_);
    for (const int32_t group : groups_) {
      for (int64_t e = group * size; e < (group + 1) * size; ++e) candidates_.push_back(static_cast<int32_t>(e));
    }
  }

  RouterOptions options_;
  const float* bias_;  // or null
  std::vector<float> scores_;
  std::vector<float> preferences_;  // scores with the bias
  std::vector<float> group_scores_;
  std::vector<int32_t> groups_;
  std::vector<int32_t> candidates_;
};

std::tuple<at::Tensor, at::Tensor> moe_router_cpu(const at::Tensor& logits, const std::optional<at::Tensor>& bias_in,
                                                  int64_t experts_per_token, int64_t scoring, int64_t groups,
                                                  int64_t groups_per_token, int64_t group_scoring, bool normalise,
                                                  double scaling) {
  const RouterOptions options{.experts_per_token = experts_per_token,
                              .scoring = static_cast<RouterScoring>(scoring),
                              .groups = groups,
                              .groups_per_token = groups_per_token,
                              .group_scoring = static_cast<GroupScoring>(group_scoring),
                              .normalise = normalise,
                              .scaling = scaling};
  const at::Tensor bias = bias_in ? bias_in->contiguous() : at::Tensor();
  const int64_t tokens = logits.size(0);
  const int64_t experts = logits.size(1);
  at::Tensor chosen = at::empty({tokens, experts_per_token}, at::kInt);
  at::Tensor gates = at::empty({tokens, experts_per_token}, at::kFloat);
  const float* from = logits.const_data_ptr<float>();
  auto* to_experts = chosen.mutable_data_ptr<int32_t>();
  auto* to_gates = gates.mutable_data_ptr<float>();
  at::parallel_for(0, tokens, 16, [&](int64_t begin, int64_t end) {
    TokenRouter router(options, bias.defined() ? bias.const_data_ptr<float>() : nullptr, experts);
    for (int64_t t = begin; t < end; ++t) {
      router.route(std::span(from + t * experts, static_cast<size_t>(experts)), to_experts + t * experts_per_token,
                   to_gates + t * experts_per_token);
    }
  });
  return {std::move(chosen), std::move(gates)};
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("moe_router", moe_router_cpu);
}

}  // namespace
}  // namespace distill::kernels
