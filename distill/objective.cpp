#include "distill/objective.h"

#include <ATen/ATen.h>

namespace distill {
namespace {

// Targets whose largest stored weight is on the student's most probable token.
int64_t count_agreements(const data::TrainingBatch& batch, const at::Tensor& top_ids) {
  const at::Tensor offsets = batch.target_offsets.contiguous();
  const auto* offset = offsets.const_data_ptr<int64_t>();
  const auto* id = batch.target_ids.const_data_ptr<int64_t>();
  const auto* weight = batch.target_weights.const_data_ptr<float>();
  const auto* top = top_ids.const_data_ptr<int64_t>();
  int64_t agreements = 0;
  for (int64_t i = 0; i < top_ids.numel(); ++i) {
    const auto* best = std::max_element(weight + offset[i], weight + offset[i + 1]);
    if (offset[i] < offset[i + 1] && id[best - weight] == top[i]) ++agreements;
  }
  return agreements;
}

}  // namespace

LossSums& LossSums::operator+=(const LossSums& other) {
  loss += other.loss;
  divergence += other.divergence;
  cross_entropy += other.cross_entropy;
  agreements += other.agreements;
  targets += other.targets;
  return *this;
}

Objective::Objective(const ObjectiveOptions& options, const data::TargetSpec& spec)
    : head_{.divergence = 1 - options.hard_label_weight,
            .cross_entropy = options.hard_label_weight,
            .temperature = spec.temperature,
            .tail = options.tail} {}

BatchLoss Objective::operator()(nn::CausalLM& model, const data::TrainingBatch& batch, double scale) const {
  const at::Tensor hidden =
      model.forward({.tokens = batch.tokens, .positions = batch.positions, .sequence_offsets = batch.sequence_offsets});
  const kernels::HeadLoss result = kernels::head_loss(hidden, model.head_weight(),
                                                      {.rows = batch.target_rows,
                                                       .labels = batch.labels.index_select(0, batch.target_rows),
                                                       .offsets = batch.target_offsets,
                                                       .ids = batch.target_ids.contiguous(),
                                                       .weights = batch.target_weights.contiguous(),
                                                       .uncovered = batch.target_uncovered},
                                                      head_, scale);
  BatchLoss loss{.loss = result.loss, .sums = {}};
  loss.sums.divergence = result.divergence.sum(at::kDouble).item<double>();
  loss.sums.cross_entropy = result.cross_entropy.sum(at::kDouble).item<double>();
  loss.sums.loss = head_.divergence * head_.temperature * head_.temperature * loss.sums.divergence +
                   head_.cross_entropy * loss.sums.cross_entropy;
  loss.sums.agreements = count_agreements(batch, result.top_ids);
  loss.sums.targets = batch.target_rows.numel();
  return loss;
}

}  // namespace distill
