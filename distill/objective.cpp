#include "distill/objective.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/philox.h"
#include "distill/target_support.h"

namespace distill {
namespace {

kernels::HeadLossOptions head_options(const ObjectiveOptions& options, double teacher_temperature) {
  const bool skewed = options.divergence == kernels::Divergence::kSkewForwardKl ||
                      options.divergence == kernels::Divergence::kSkewReverseKl;
  return {.kind = options.divergence,
          .mix = options.mix.value_or(skewed ? 0.1 : 0.5),
          .divergence = 1 - options.hard_label_weight,
          .cross_entropy = options.hard_label_weight,
          .temperature = options.temperature.value_or(teacher_temperature),
          .tail = options.tail,
          .entropy_power = options.weights.entropy_power};
}

// [targets] fp32, or undefined where all count alike.
at::Tensor token_weights(const TokenWeightOptions& options, const data::TrainingBatch& batch) {
  if (options.reasoning == 1 && options.answer == 1 && options.incorrect == 1 && options.unchecked == 1) return {};
  const int64_t count = batch.target_rows.numel();
  const at::Tensor weights = at::empty({count}, at::kFloat);
  auto* const weight = weights.mutable_data_ptr<float>();
  const auto* const row = batch.target_rows.const_data_ptr<int64_t>();
  const auto* const offset = batch.sequence_offsets.const_data_ptr<int32_t>();
  int64_t target = 0;
  for (size_t d = 0; d < batch.documents.size(); ++d) {
    const data::Verdict verdict = batch.verdicts[d];
    const double of_document = verdict == data::Verdict::kIncorrect   ? options.incorrect
                               : verdict == data::Verdict::kUnchecked ? options.unchecked
                                                                      : 1.0;
    for (int64_t j = 0; target < count && row[target] < offset[d + 1]; ++target, ++j) {
      const bool reasoning = j < batch.reasoning_targets[d];
      weight[target] = static_cast<float>(of_document * (reasoning ? options.reasoning : options.answer));
    }
  }
  return weights;
}

int64_t existing_layer(int64_t layer, int64_t last_layer, std::string_view whose) {
  if (layer > last_layer) {
    core::fail_usage(
        "objective: hidden_states: the {} has no layer {}: its layers are 0 (the embedding) to {}, or last", whose,
        layer, last_layer);
  }
  return layer == kLastLayer ? last_layer : layer;
}

std::vector<int64_t> student_layers(const HiddenStateOptions& options, const nn::ModelShape& student) {
  std::vector<int64_t> layers;
  for (const LayerPair& pair : options.layers) {
    layers.push_back(existing_layer(pair.student, student.num_layers, "student"));
  }
  return layers;
}

std::vector<int64_t> teacher_layers(const HiddenStateOptions& options, int64_t last_layer) {
  std::vector<int64_t> layers;
  for (const LayerPair& pair : options.layers) layers.push_back(existing_layer(pair.teacher, last_layer, "teacher"));
  return layers;
}

const data::HiddenStatesSpec& stored_hidden_states(const data::TraceSource& traces) {
  if (traces.carried_over()) {
    core::fail_usage(
        "objective: hidden_states belong to the teacher's tokens, which a student with another tokenizer doesn't have");
  }
  const auto& stored = traces.provenance().hidden_states;
  if (!stored) {
    core::fail_usage(
        "objective: hidden_states are not in these traces; make traces with distill generate --hidden-states last, or "
        "let a teacher compute them during training (distill train --online)");
  }
  return *stored;
}

std::vector<int64_t> stored_layers_of(const HiddenStateOptions& options, const data::HiddenStatesSpec& stored) {
  std::vector<int64_t> layers = teacher_layers(options, stored.last_layer);
  for (const int64_t layer : layers) {
    if (stored.index_of(layer)) continue;
    core::fail_usage(
        "objective: hidden_states: the traces hold those of the teacher's layers {}, not of layer {}; choose one of "
        "them under layers",
        fmt::join(stored.layers, ", "), layer);
  }
  return layers;
}

// Rows [targets, size] of the states of each layer.
std::vector<at::Tensor> rows_of(const nn::LayerTap& tap, const at::Tensor& rows) {
  std::vector<at::Tensor> selected;
  for (const at::Tensor& states : tap.states) selected.push_back(states.index_select(0, rows));
  return selected;
}

Calibration calibrate(const kernels::HeadLoss& result, const at::Tensor& labels) {
  Calibration calibration;
  const auto* const confidence = result.confidence.const_data_ptr<float>();
  const auto* const top = result.top_ids.const_data_ptr<int64_t>();
  const auto* const label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < labels.numel(); ++i) {
    if (label[i] == kernels::kIgnoredLabel || !std::isfinite(confidence[i])) continue;
    const auto bin = std::min(Calibration::kBins - 1, static_cast<size_t>(confidence[i] * Calibration::kBins));
    calibration.count[bin] += 1;
    calibration.confidence[bin] += confidence[i];
    calibration.hits[bin] += top[i] == label[i] ? 1 : 0;
  }
  return calibration;
}

}  // namespace

double Calibration::error() const {
  double total = 0;
  double error = 0;
  for (size_t b = 0; b < kBins; ++b) {
    total += count[b];
    error += std::abs(confidence[b] - hits[b]);
  }
  return total > 0 ? error / total : 0;
}

LossSums& LossSums::operator+=(const LossSums& other) {
  loss += other.loss;
  divergence += other.divergence;
  cross_entropy += other.cross_entropy;
  hidden_states += other.hidden_states;
  agreements += other.agreements;
  targets += other.targets;
  for (size_t b = 0; b < Calibration::kBins; ++b) {
    calibration.count[b] += other.calibration.count[b];
    calibration.confidence[b] += other.calibration.confidence[b];
    calibration.hits[b] += other.calibration.hits[b];
  }
  return *this;
}

at::Tensor LossSums::to_tensor() const {
  std::vector<double> numbers{
      loss, divergence, cross_entropy, hidden_states, static_cast<double>(agreements), static_cast<double>(targets)};
  for (const auto* sums : {&calibration.count, &calibration.confidence, &calibration.hits}) {
    numbers.insert(numbers.end(), sums->begin(), sums->end());
  }
  return at::tensor(numbers, at::kDouble);
}

LossSums LossSums::from_tensor(const at::Tensor& numbers) {
  const auto* next = numbers.const_data_ptr<double>();
  LossSums sums;
  sums.loss = *next++;
  sums.divergence = *next++;
  sums.cross_entropy = *next++;
  sums.hidden_states = *next++;
  sums.agreements = std::llround(*next++);
  sums.targets = std::llround(*next++);
  for (auto* into : {&sums.calibration.count, &sums.calibration.confidence, &sums.calibration.hits}) {
    for (double& number : *into) number = *next++;
  }
  return sums;
}

Objective::Objective(const ObjectiveOptions& options, const data::TargetSpec& spec, bool carried_over)
    : head_(head_options(options, options.teacher_temperature.value_or(spec.temperature))), weights_(options.weights) {
  // Stored distributions are at their temperature: what is left to do is the ratio.
  head_.teacher_temperature = options.teacher_temperature.value_or(spec.temperature) / spec.temperature;
  if (head_.divergence > 0) {
    require_support(spec, use_of(head_.kind), to_string(head_.kind), carried_over);
    const bool tempered = head_.teacher_temperature != 1 || (carried_over && spec.temperature != 1);
    if (tempered) require_support(spec, TargetUse::kTemperature, "teacher_temperature", carried_over);
  }
  if (head_.entropy_power != 0) require_support(spec, TargetUse::kEntropy, "weights.entropy_power", carried_over);
}

Objective::Objective(const ObjectiveOptions& options, const data::TraceSource& traces, const nn::ModelShape& student,
                     uint64_t seed)
    : Objective(options, traces.provenance().targets, traces.carried_over()) {
  divergence_excess_ = traces.divergence_excess();
  hidden_weight_ = options.hidden_states.weight;
  if (hidden_weight_ == 0) return;
  const data::HiddenStatesSpec& stored = stored_hidden_states(traces);
  student_layers_ = student_layers(options.hidden_states, student);
  teacher_layers_.push_back(stored_layers_of(options.hidden_states, stored));
  add_projectors(options.hidden_states, student.hidden_size, stored.width, seed);
}

Objective::Objective(const ObjectiveOptions& options, std::vector<OnlineTeacher> teachers,
                     const nn::ModelShape& student, uint64_t seed)
    : head_(head_options(options, options.teacher_temperature.value_or(1.0))),
      hidden_weight_(options.hidden_states.weight),
      weights_(options.weights),
      teachers_(std::move(teachers)) {
  head_.teacher_temperature = options.teacher_temperature.value_or(1.0);
  core::check(!teachers_.empty(), "online distillation needs a teacher");
  const c10::NoGradGuard no_grad;
  if (hidden_weight_ > 0) student_layers_ = student_layers(options.hidden_states, student);
  for (auto& teacher : teachers_) {
    teacher.head = teacher.model->head_weight().detach();
    if (hidden_weight_ == 0) continue;
    const nn::ModelShape& shape = teacher.model->shape();
    teacher_layers_.push_back(teacher_layers(options.hidden_states, shape.num_layers));
    add_projectors(options.hidden_states, student.hidden_size, shape.hidden_size, seed);
  }
}

void Objective::add_projectors(const HiddenStateOptions& options, int64_t student_size, int64_t teacher_size,
                               uint64_t seed) {
  for (size_t i = 0; i < options.layers.size(); ++i) {
    const uint64_t stream = core::stream_id("projector", hidden_losses_.size());
    hidden_losses_.emplace_back(options.distance, student_size, teacher_size, seed ^ stream);
  }
}

std::vector<int64_t> Objective::stored_layers() const {
  return teachers_.empty() && !teacher_layers_.empty() ? teacher_layers_.front() : std::vector<int64_t>();
}

data::NamedTensors Objective::parameters() const {
  data::NamedTensors parameters;
  for (size_t i = 0; i < hidden_losses_.size(); ++i) {
    parameters.emplace_back(fmt::format("projector.{}", i), hidden_losses_[i].projector());
  }
  return parameters;
}

BatchLoss Objective::operator()(nn::CausalLM& model, const data::TrainingBatch& batch, double scale) const {
  const nn::PackedBatch packed{
      .tokens = batch.tokens, .positions = batch.positions, .sequence_offsets = batch.sequence_offsets};
  nn::LayerTap tap{.layers = student_layers_};
  const at::Tensor hidden = model.forward_tapped(packed, nullptr, nullptr, tap);
  const std::vector<at::Tensor> states = rows_of(tap, batch.target_rows);
  const at::Tensor head = model.head_weight();
  kernels::HeadLossTargets targets{.rows = batch.target_rows,
                                   .labels = batch.labels.index_select(0, batch.target_rows)};
  const at::Tensor weights = token_weights(weights_, batch);
  if (teachers_.empty()) {
    targets.offsets = batch.target_offsets;
    targets.ids = batch.target_ids;
    targets.weights = batch.target_weights;
    targets.uncovered = batch.target_uncovered;
    BatchLoss loss = compute(hidden, head, targets, scale, weights,
                             {.student = states, .teacher = batch.hidden_states, .losses = hidden_losses_});
    loss.sums.divergence -= divergence_excess_ * static_cast<double>(loss.sums.targets);
    return loss;
  }
  BatchLoss sum;
  for (size_t t = 0; t < teachers_.size(); ++t) {
    const OnlineTeacher& teacher = teachers_[t];
    std::vector<at::Tensor> theirs;
    {
      const c10::NoGradGuard no_grad;
      nn::LayerTap taught{.layers = teacher_layers_.empty() ? std::vector<int64_t>() : teacher_layers_[t]};
      const at::Tensor last = teacher.model->forward_tapped(packed, nullptr, nullptr, taught);
      theirs = rows_of(taught, batch.target_rows);
      targets.teacher_hidden = last.index_select(0, batch.target_rows);
      targets.teacher_weight = teacher.head;
    }
    const std::span losses = std::span(hidden_losses_).subspan(t * states.size(), states.size());
    const BatchLoss one = compute(hidden, head, targets, scale * teacher.weight, weights,
                                  {.student = states, .teacher = theirs, .losses = losses});
    if (!sum.loss.defined()) {
      sum = one;
      sum.sums.loss *= teacher.weight;
      sum.sums.divergence *= teacher.weight;
      sum.sums.hidden_states *= teacher.weight;
      continue;
    }
    sum.loss = sum.loss + one.loss;
    sum.sums.loss += teacher.weight * one.sums.loss;
    sum.sums.divergence += teacher.weight * one.sums.divergence;
    sum.sums.hidden_states += teacher.weight * one.sums.hidden_states;
  }
  return sum;
}

BatchLoss Objective::compute(const at::Tensor& hidden, const at::Tensor& head, const kernels::HeadLossTargets& targets,
                             double scale, const at::Tensor& token_weights, const Comparison& compared) const {
  const kernels::HeadLoss result = kernels::head_loss(hidden, head, targets, head_, scale, token_weights);
  const auto total = [](const at::Tensor& values) { return values.sum(at::kDouble).item<double>(); };
  const double square = head_.temperature * head_.temperature;
  BatchLoss loss{.loss = result.loss,
                 .sums = {.loss = head_.divergence * square * total(result.factors * result.divergence) +
                                  head_.cross_entropy * total(result.factors * result.cross_entropy),
                          .divergence = total(result.kl),
                          .cross_entropy = total(result.cross_entropy),
                          .agreements = result.top_ids.eq(result.teacher_top_ids).sum().item<int64_t>(),
                          .targets = targets.rows.numel(),
                          .calibration = calibrate(result, targets.labels)}};
  if (!compared.losses.empty()) {
    TORCH_CHECK(compared.teacher.size() == compared.losses.size(), "hidden states of ", compared.teacher.size(),
                " layers for ", compared.losses.size(), " projectors");
    at::Tensor distances;
    for (size_t i = 0; i < compared.losses.size(); ++i) {
      const at::Tensor one = compared.losses[i](compared.student[i], compared.teacher[i]);
      distances = distances.defined() ? distances + one : one;
    }
    distances = distances / static_cast<double>(compared.losses.size());
    const at::Tensor weighted = distances * result.factors;
    loss.loss = loss.loss + weighted.sum() * (scale * hidden_weight_);
    loss.sums.loss += hidden_weight_ * total(weighted.detach());
    loss.sums.hidden_states = total(distances.detach());
  }
  return loss;
}

}  // namespace distill
