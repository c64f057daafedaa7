#include "data/target_sampler.h"

#include "data/target_encoder.h"

namespace distill::data {

TargetSampler::TargetSampler(const TargetSpec& spec, uint64_t seed, const TraceKey& key)
    : spec_(spec), seed_(seed), stream_(target_stream(key)) {}

void TargetSampler::add(std::span<const float> logits) {
  core::Philox draws = target_draws(seed_, stream_, targets_.positions() + exact_.positions());
  if (spec_.mode != TargetMode::kThreshold) return encode_target(logits, spec_, draws, targets_);
  if (exact_.positions() == kWindow) finish();
  SharedTail tail;
  encode_target(logits, spec_, draws, exact_, tail);
  for (SharedToken& token : tail.tokens) {
    token.position = static_cast<uint32_t>(tail_weights_.size());
    tails_.push_back(token);
  }
  tail_weights_.push_back(tail.weight);
}

std::vector<int32_t> TargetSampler::candidates() const {
  const SparseTargets& last = spec_.mode == TargetMode::kThreshold ? exact_ : targets_;
  if (last.positions() == 0) return {};
  const auto exact = last[last.positions() - 1].ids;
  std::vector<int32_t> result(exact.begin(), exact.end());
  for (auto token = tails_.rbegin(); token != tails_.rend() && token->position + 1 == exact_.positions(); ++token) {
    result.push_back(token->id);
  }
  return result;
}

void TargetSampler::finish() {
  core::Philox draws = tail_draws(seed_, stream_, targets_.positions());
  round_balanced(tails_, draws);
  auto token = tails_.begin();
  for (uint32_t position = 0; position < tail_weights_.size(); ++position) {
    const TargetDistribution exact = exact_[position];
    targets_.ids.insert(targets_.ids.end(), exact.ids.begin(), exact.ids.end());
    targets_.weights.insert(targets_.weights.end(), exact.weights.begin(), exact.weights.end());
    for (; token != tails_.end() && token->position == position; ++token) {
      if (token->shares == 0) continue;
      targets_.ids.push_back(token->id);
      targets_.weights.push_back(tail_weights_[position]);
    }
    targets_.offsets.push_back(static_cast<int64_t>(targets_.ids.size()));
    targets_.uncovered.push_back(0);
  }
  exact_.clear();
  tails_.clear();
  tail_weights_.clear();
}

}  // namespace distill::data
