#include "distill/trainer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>

#include "core/error.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "core/progress.h"
#include "distill/answer_sampler.h"
#include "distill/batch_loader.h"
#include "distill/checkpoint.h"
#include "distill/gradient_reducer.h"
#include "distill/metrics_log.h"
#include "distill/training_report.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<at::Tensor> tensors_of(const data::NamedTensors& named) {
  std::vector<at::Tensor> tensors;
  for (const auto& [name, tensor] : named) tensors.push_back(tensor);
  return tensors;
}

bool is_due(int64_t step, int64_t every) {
  return every > 0 && step % every == 0;
}

Scalars training_scalars(const LossSums& sums, double learning_rate, double gradient_norm, double tokens_per_second,
                         const TrainerState& state) {
  const auto targets = static_cast<double>(std::max<int64_t>(1, sums.targets));
  return {{"loss", sums.loss / targets},
          {"divergence", sums.divergence / targets},
          {"cross_entropy", sums.cross_entropy / targets},
          {"agreement", static_cast<double>(sums.agreements) / targets},
          {"learning_rate", learning_rate},
          {"gradient_norm", gradient_norm},
          {"tokens_per_second", tokens_per_second},
          {"tokens", static_cast<double>(state.tokens)},
          {"epoch", static_cast<double>(state.batcher.epoch)}};
}

Scalars validation_scalars(const Evaluation& evaluation) {
  return {{"loss", evaluation.loss()},
          {"divergence", evaluation.divergence()},
          {"cross_entropy", evaluation.cross_entropy()},
          {"perplexity", evaluation.perplexity()},
          {"agreement", evaluation.agreement()},
          {"calibration_error", evaluation.sums.calibration.error()}};
}

// One run of the loop, from its checkpoint to its last step.
class Run {
 public:
  explicit Run(const TrainingJob& job)
      : job_(job),
        recipe_(job.recipe),
        objective_(make_objective(job)),
        parameters_(job.student.parameters()),
        auxiliary_(objective_.parameters()),
        optimizer_(everything(), recipe_.optimizer, job.ranks),
        guard_(recipe_.guard, recipe_.clip_norm > 0) {
    if (recipe_.on_policy.student_share + recipe_.on_policy.teacher_share > 0) {
      if (job.teachers.empty()) {
        core::fail_usage("on_policy: answers written during training have no stored targets; use --online");
      }
      answers_.emplace(job.traces, recipe_.on_policy, job.stop_tokens, recipe_.micro_batch_tokens, recipe_.seed);
    }
    state_.recipe = recipe_.to_json();
    state_.provenance = job.traces->provenance().to_json();
    state_.teachers = describe_teachers(job.teachers);
    data::NamedTensors moments;
    if (leads()) {
      checkpoints_.emplace(job.run, recipe_.keep_checkpoints);
      if (const auto latest = checkpoints_->latest()) moments = resume(*latest);
    }
    begin_alike(moments);
    if (job.ranks != nullptr) reducer_.emplace(tensors_of(optimizer_.trained()), *job.ranks);
    hold_out();
  }

  TrainingSummary run() {
    std::optional<MetricsLog> metrics;
    std::optional<core::Progress> progress;
    if (leads()) {
      metrics.emplace(job_.run, state_.step);
      progress.emplace("training", static_cast<uint64_t>(recipe_.schedule.steps), "steps",
                       static_cast<uint64_t>(state_.step));
    }
    BatchLoader loader(job_.traces, batcher_options(false), state_.batcher, recipe_.batch_tokens, rank(), ranks());
    const auto start = Clock::now();
    const uint64_t tokens_before = state_.tokens;
    bool stop = core::interrupt_requested() && job_.ranks == nullptr;
    while (state_.step < recipe_.schedule.steps && !stop && !stalled()) {
      const int64_t before = state_.step;
      stop = step(loader.next(), metrics, progress);
      if (state_.step <= before) continue;  // rolled back
      if (validation_ && is_due(state_.step, recipe_.validate_every)) {
        validate(metrics);
        remember_best();
      }
      // What makes steps fail may be in the weights already: then the last checkpoint is worth more than a new one.
      if (is_due(state_.step, recipe_.checkpoint_every) && !guard_.alarmed()) save();
    }
    if (progress) progress->finish();
    summary_.stopped_early = stalled();
    summary_.interrupted = state_.step < recipe_.schedule.steps && !summary_.stopped_early;
    const bool unsaved = saved_at_ != state_.step;
    if (unsaved && !summary_.interrupted && guard_.weights_in_doubt()) stop_at(state_.step, alarm_);
    if (validation_ && !summary_.interrupted && validated_at_ != state_.step) validate(metrics);
    const bool in_trouble = summary_.interrupted && guard_.alarmed() && saved_at_ > 0;
    if (unsaved && !in_trouble) save();

    summary_.steps = state_.step;
    summary_.tokens = state_.tokens;
    summary_.seconds = seconds_since(start);
    summary_.tokens_per_second = static_cast<double>(state_.tokens - tokens_before) / std::max(1e-9, seconds_training_);
    summary_.packing_share = static_cast<double>(packed_) / std::max<double>(1, static_cast<double>(room_));
    summary_.loader_wait_share = loader.seconds_waited() / std::max(1e-9, summary_.seconds);
    if (leads() && !summary_.interrupted) report();
    return summary_;
  }

 private:
  int rank() const { return job_.ranks != nullptr ? job_.ranks->rank() : 0; }
  int ranks() const { return job_.ranks != nullptr ? job_.ranks->size() : 1; }
  bool leads() const { return rank() == 0; }

  static Objective make_objective(const TrainingJob& job) {
    const ObjectiveOptions& options = job.recipe.objective;
    if (job.teachers.empty()) {
      return Objective(options, *job.traces, job.student.shape(), job.recipe.seed);
    }
    return Objective(options, job.teachers, job.student.shape(), job.recipe.seed);
  }

  data::BatcherOptions batcher_options(bool validation) const {
    return {.max_tokens = recipe_.micro_batch_tokens,
            .seed = recipe_.seed,
            .validation_share = recipe_.validation_share,
            .validation = validation,
            .hidden_layers = objective_.stored_layers()};
  }

  // That is trained.
  data::NamedTensors everything() const {
    data::NamedTensors all = parameters_;
    all.insert(all.end(), auxiliary_.begin(), auxiliary_.end());
    return all;
  }

  // Every rank goes on from where rank 0 stands, which knows the optimizer's state; empty at the beginning.
  void begin_alike(const data::NamedTensors& moments) {
    if (job_.ranks != nullptr) {
      const c10::NoGradGuard no_grad;
      for (const auto& [name, tensor] : everything()) {
        at::Tensor values = tensor.detach();
        job_.ranks->broadcast(values);
      }
      const std::string state = job_.ranks->broadcast(state_.to_json().dump());
      if (!leads()) {
        state_ = TrainerState::from_json(nlohmann::json::parse(state), "rank 0's state");
        if (state_.step > 0) saved_at_ = state_.step;  // every rank decides alike whether to save
      }
    }
    optimizer_.set_state(moments, job_.ranks);
    guard_.restore(state_.guard, "trainer.json: guard");
  }

  // Returns the optimizer's state.
  data::NamedTensors resume(const std::filesystem::path& checkpoint) {
    auto [found, moments] = load_checkpoint(checkpoint, job_.package, parameters_, auxiliary_, optimizer_);
    const std::string state_file = (checkpoint / "trainer.json").string();
    const auto refuse = [&](const std::string& difference) {
      if (!difference.empty()) {
        core::fail("{}: the run there was started with another {}; repeat its settings or choose another --out",
                   job_.run.string(), difference);
      }
    };
    refuse(Recipe::from_json(found.recipe, state_file).difference(recipe_));
    refuse(data::TraceProvenance::from_json(found.provenance, state_file).difference(job_.traces->provenance()));
    refuse(teachers_difference(found.teachers, state_.teachers));
    core::check(found.step <= recipe_.schedule.steps, "{}: the run there is at step {} already, past the {} asked for",
                job_.run.string(), found.step, recipe_.schedule.steps);
    found.recipe = state_.recipe;  // the number of steps may be another one
    state_ = std::move(found);
    saved_at_ = state_.step;
    summary_.resumed_from = state_.step;
    summary_.checkpoint = checkpoint;
    core::log::info("continuing {} at step {}", job_.run.string(), state_.step);
    return moments;
  }

  // To the weights of the last checkpoint, but on with the data behind what went wrong.
  void roll_back(const std::string& reason, std::optional<MetricsLog>& metrics,
                 std::optional<core::Progress>& progress) {
    constexpr int64_t kMostRollbacks = 3;
    if (saved_at_ <= 0 || rollbacks_ == kMostRollbacks) stop_at(state_.step, reason);
    ++rollbacks_;
    ++summary_.rollbacks;
    const data::BatcherState position = state_.batcher;
    data::NamedTensors moments;
    if (leads()) {
      auto [found, loaded] =
          load_checkpoint(*checkpoints_->latest(), job_.package, parameters_, auxiliary_, optimizer_);
      core::log::warn("step {}: {}, {} in a row: going back to the checkpoint of step {}", state_.step, reason,
                      recipe_.guard.patience, found.step);
      found.recipe = state_.recipe;
      state_ = std::move(found);
      moments = std::move(loaded);
      metrics.emplace(job_.run, state_.step);
      progress.emplace("training", static_cast<uint64_t>(recipe_.schedule.steps), "steps",
                       static_cast<uint64_t>(state_.step));
    }
    state_.batcher = position;
    begin_alike(moments);
  }

  // Early stopping.
  bool stalled() const { return recipe_.patience > 0 && state_.validations_since_best >= recipe_.patience; }
  void remember_best() {
    const double loss = summary_.validation->loss();
    const bool better = !state_.best_validation || loss < *state_.best_validation;
    if (better) state_.best_validation = loss;
    state_.validations_since_best = better ? 0 : state_.validations_since_best + 1;
  }

  // With few prompts none may fall into the validation share: no reason not to train.
  void hold_out() {
    if (recipe_.validation_share == 0) return;
    try {
      data::BatcherOptions options = batcher_options(true);
      options.rank = rank();
      options.world = ranks();
      validation_ = std::make_unique<data::Batcher>(job_.traces, options);
    } catch (const core::Error& error) {
      core::log::warn("training without validation: {}", error.what());
    }
  }

  // Whether the work is asked to end.
  bool step(StepBatches work, std::optional<MetricsLog>& metrics, std::optional<core::Progress>& progress) {
    const auto start = Clock::now();
    if (answers_) rewrite_answers(work);
    LossSums sums = accumulate_gradients(work);
    const bool stop = sum_over_ranks(sums, core::interrupt_requested());
    const double norm = optimizer_.gradient_norm();
    const double rate = recipe_.schedule.rate(state_.step + 1);
    const std::string reason = guard_.judge(sums.loss, norm);
    if (!guard_.skips()) {
      optimizer_.step(rate, recipe_.clip_norm > 0 ? std::max(1.0, norm / recipe_.clip_norm) : 1.0);
      optimizer_.update_averages(state_.step + 1);
    }
    optimizer_.zero_gradients();

    ++state_.step;
    state_.tokens += static_cast<uint64_t>(work.tokens);
    state_.targets += static_cast<uint64_t>(work.targets);
    state_.batcher = work.after;
    if (!reason.empty()) {
      alarm_ = reason;
      if (guard_.skips()) ++summary_.skipped;
      if (leads()) core::log::warn("step {} {}: {}", state_.step, guard_.skips() ? "skipped" : "clipped", reason);
      if (guard_.exhausted()) {
        roll_back(reason, metrics, progress);
        return stop;
      }
    }
    const double seconds = seconds_since(start);
    seconds_training_ += seconds;
    if (!leads()) return stop;
    const double speed = static_cast<double>(work.tokens) / seconds;
    const double targets = static_cast<double>(std::max<int64_t>(1, sums.targets));
    Scalars scalars = training_scalars(sums, rate, norm, speed, state_);
    if (!auxiliary_.empty()) scalars.emplace_back("hidden_states", sums.hidden_states / targets);
    if (guard_.skips()) scalars.emplace_back("skipped", 1.0);
    metrics->write(state_.step, "train", scalars);
    progress->set_note(fmt::format("loss {:.3f}, KL {:.3f}, {} tokens/s", sums.loss / targets,
                                   sums.divergence / targets, core::format_count(speed)));
    progress->advance();
    return stop;
  }

  // Writes those answers anew that are to be; the work is then as large as these make it.
  void rewrite_answers(StepBatches& work) {
    std::vector<data::TrainingBatch> batches;
    for (size_t i = 0; i < work.batches.size(); ++i) {
      const int64_t index = work.numbers[i];
      const AnswerSource source = answers_->source(state_.step, index);
      if (source == AnswerSource::kTraces) {
        batches.push_back(std::move(work.batches[i]));
        continue;
      }
      const bool own = source == AnswerSource::kStudent;
      nn::CausalLM& writer = own ? job_.student : *job_.teachers.front().model;
      std::ranges::move(answers_->rewrite(work.batches[i], writer, own, state_.step, index),
                        std::back_inserter(batches));
    }
    work.batches = std::move(batches);
    work.numbers.clear();
    int64_t tokens = 0, targets = 0;
    for (const auto& batch : work.batches) {
      tokens += batch.tokens.numel();
      targets += batch.target_rows.numel();
    }
    at::Tensor sizes = at::tensor({tokens, targets}, at::kLong);
    if (job_.ranks != nullptr) job_.ranks->sum(sizes);
    work.tokens = sizes[0].item<int64_t>();
    work.targets = sizes[1].item<int64_t>();
  }

  // Of the losses of this rank; the gradients are summed over all ranks while the last of them is differentiated.
  LossSums accumulate_gradients(const StepBatches& work) {
    LossSums sums;
    const double scale = 1.0 / static_cast<double>(std::max<int64_t>(1, work.targets));
    for (size_t i = 0; i < work.batches.size(); ++i) {
      const data::TrainingBatch& batch = work.batches[i];
      packed_ += batch.tokens.numel();
      room_ += std::max(batch.tokens.numel(), recipe_.micro_batch_tokens);
      const BatchLoss loss = objective_(job_.student, batch, scale);
      sums += loss.sums;
      if (reducer_ && i + 1 == work.batches.size()) {
        job_.ranks->guard([&] { reducer_->backward(loss.loss); });
      } else {
        loss.loss.backward();
      }
    }
    if (reducer_ && work.batches.empty()) job_.ranks->guard([&] { reducer_->backward(reducer_->zero()); });
    return sums;
  }

  // Whether any rank is asked to end.
  bool sum_over_ranks(LossSums& sums, bool interrupted) const {
    if (job_.ranks == nullptr) return interrupted;
    at::Tensor all = at::cat({sums.to_tensor(), at::tensor({interrupted ? 1.0 : 0.0}, at::kDouble)});
    job_.ranks->sum(all);
    sums = LossSums::from_tensor(all);
    return all[-1].item<double>() > 0;
  }

  [[noreturn]] void stop_at(int64_t step, const std::string& reason) {
    core::fail(
        "step {}: {}, so the run has diverged; {}. Lower the learning rate or lengthen the warm-up, and start anew in "
        "another --out",
        step, reason,
        saved_at_ > 0 ? fmt::format("the checkpoint of step {} is kept", saved_at_) : "there is no checkpoint yet");
  }

  // Where averages of the weights are kept, it is they that are validated.
  void validate(std::optional<MetricsLog>& metrics) {
    optimizer_.swap_averages();
    Evaluation evaluation = evaluate_targets(job_.student, *validation_, objective_, nullptr);
    optimizer_.swap_averages();
    if (job_.ranks != nullptr) {
      sum_over_ranks(evaluation.sums, false);
      at::Tensor counts =
          at::tensor({static_cast<int64_t>(evaluation.documents), static_cast<int64_t>(evaluation.tokens)});
      job_.ranks->sum(counts);
      evaluation.documents = static_cast<uint64_t>(counts[0].item<int64_t>());
      evaluation.tokens = static_cast<uint64_t>(counts[1].item<int64_t>());
    }
    summary_.validation = evaluation;
    validated_at_ = state_.step;
    if (leads()) metrics->write(state_.step, "validation", validation_scalars(evaluation));
  }

  // With the weights that are kept.
  void report() {
    constexpr size_t kAnswers = 4;
    std::vector<AnswerSample> samples;
    if (job_.tokenizer && validation_) {
      validation_->restore({});
      const auto batch = validation_->next_in_epoch();
      std::vector<size_t> documents = batch ? batch->documents : std::vector<size_t>();
      documents.resize(std::min(documents.size(), kAnswers));
      optimizer_.swap_averages();
      samples = sample_answers(job_, documents);
      optimizer_.swap_averages();
    }
    summary_.report = write_training_report(job_, summary_, samples);
  }

  void save() {
    state_.guard = guard_.to_json();
    const data::NamedTensors moments = optimizer_.state();
    if (leads()) {
      summary_.checkpoint = checkpoints_->save(state_, job_.package, optimizer_.averaged(parameters_),
                                               optimizer_.averaged(auxiliary_), moments);
    }
    saved_at_ = state_.step;
    rollbacks_ = 0;
  }

  const TrainingJob& job_;
  const Recipe& recipe_;
  Objective objective_;
  data::NamedTensors parameters_;  // of the student
  data::NamedTensors auxiliary_;   // of the objective
  Optimizer optimizer_;
  SpikeGuard guard_;
  std::optional<AnswerSampler> answers_;        // where answers are written during training
  std::optional<CheckpointStore> checkpoints_;  // in rank 0
  std::optional<GradientReducer> reducer_;      // where there are several ranks
  std::unique_ptr<data::Batcher> validation_;   // null where nothing is held out
  TrainerState state_;
  TrainingSummary summary_;
  int64_t saved_at_ = -1;
  int64_t validated_at_ = -1;
  int64_t rollbacks_ = 0;  // since the last checkpoint was written
  std::string alarm_;      // what was wrong with the last step that something was wrong with
  int64_t packed_ = 0;     // tokens of this rank's batches
  int64_t room_ = 0;       //   and how many they could have had
  double seconds_training_ = 0;
};

}  // namespace

nlohmann::ordered_json TrainingSummary::to_json() const {
  nlohmann::ordered_json json{{"steps", steps},
                              {"resumed_from", resumed_from},
                              {"interrupted", interrupted},
                              {"stopped_early", stopped_early},
                              {"skipped", skipped},
                              {"rollbacks", rollbacks},
                              {"tokens", tokens},
                              {"seconds", seconds},
                              {"tokens_per_second", tokens_per_second},
                              {"loader_wait_share", loader_wait_share},
                              {"packing_share", packing_share},
                              {"checkpoint", checkpoint.string()}};
  if (!report.empty()) json["report"] = report.string();
  if (validation) json["validation"] = validation->to_json();
  return json;
}

TrainingSummary train(const TrainingJob& job) {
  return Run(job).run();
}

}  // namespace distill
