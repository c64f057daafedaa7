#include "distill/trainer.h"

#include <ATen/ATen.h>

#include <chrono>
#include <cmath>

#include "core/error.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "core/progress.h"
#include "distill/batch_loader.h"
#include "distill/checkpoint.h"
#include "distill/metrics_log.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

data::BatcherOptions batcher_options(const Recipe& recipe, bool validation) {
  return {.max_tokens = recipe.micro_batch_tokens,
          .seed = recipe.seed,
          .validation_share = recipe.validation_share,
          .validation = validation};
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
          {"agreement", evaluation.agreement()}};
}

// One run of the loop, from its checkpoint to its last step.
class Run {
 public:
  explicit Run(const TrainingJob& job)
      : job_(job),
        recipe_(job.recipe),
        objective_(recipe_.objective, job.traces->provenance().targets),
        parameters_(job.student.parameters()),
        optimizer_(parameters_, recipe_.optimizer),
        checkpoints_(job.run, recipe_.keep_checkpoints) {
    state_.recipe = recipe_.to_json();
    state_.provenance = job.traces->provenance().to_json();
    if (const auto latest = checkpoints_.latest()) resume(*latest);
    hold_out();
  }

  TrainingSummary run() {
    MetricsLog metrics(job_.run, state_.step);
    BatchLoader loader(job_.traces, batcher_options(recipe_, false), state_.batcher, recipe_.batch_tokens);
    core::Progress progress("training", static_cast<uint64_t>(recipe_.schedule.steps), "steps",
                            static_cast<uint64_t>(state_.step));
    const auto start = Clock::now();
    const uint64_t tokens_before = state_.tokens;
    while (state_.step < recipe_.schedule.steps && !core::interrupt_requested()) {
      step(loader.next(), metrics, progress);
      if (validation_ && is_due(state_.step, recipe_.validate_every)) validate(metrics);
      if (is_due(state_.step, recipe_.checkpoint_every)) save();
    }
    progress.finish();
    summary_.interrupted = state_.step < recipe_.schedule.steps;
    if (validation_ && !summary_.interrupted && validated_at_ != state_.step) validate(metrics);
    if (saved_at_ != state_.step) save();

    summary_.steps = state_.step;
    summary_.tokens = state_.tokens;
    summary_.seconds = seconds_since(start);
    summary_.tokens_per_second = static_cast<double>(state_.tokens - tokens_before) / std::max(1e-9, seconds_training_);
    summary_.loader_wait_share = loader.seconds_waited() / std::max(1e-9, summary_.seconds);
    return summary_;
  }

 private:
  void resume(const std::filesystem::path& checkpoint) {
    TrainerState found = load_checkpoint(checkpoint, job_.package, parameters_, optimizer_);
    const std::string state_file = (checkpoint / "trainer.json").string();
    const auto refuse = [&](const std::string& difference) {
      if (!difference.empty()) {
        core::fail("{}: the run there was started with another {}; repeat its settings or choose another --out",
                   job_.run.string(), difference);
      }
    };
    refuse(Recipe::from_json(found.recipe, state_file).difference(recipe_));
    refuse(data::TraceProvenance::from_json(found.provenance, state_file).difference(job_.traces->provenance()));
    core::check(found.step <= recipe_.schedule.steps, "{}: the run there is at step {} already, past the {} asked for",
                job_.run.string(), found.step, recipe_.schedule.steps);
    found.recipe = state_.recipe;  // the number of steps may be another one
    state_ = std::move(found);
    saved_at_ = state_.step;
    summary_.resumed_from = state_.step;
    summary_.checkpoint = checkpoint;
    core::log::info("continuing {} at step {}", job_.run.string(), state_.step);
  }

  // With few prompts none may fall into the validation share: no reason not to train.
  void hold_out() {
    if (recipe_.validation_share == 0) return;
    try {
      validation_ = std::make_unique<data::Batcher>(job_.traces, batcher_options(recipe_, true));
    } catch (const core::Error& error) {
      core::log::warn("training without validation: {}", error.what());
    }
  }

  void step(const StepBatches& work, MetricsLog& metrics, core::Progress& progress) {
    const auto start = Clock::now();
    LossSums sums;
    for (const auto& batch : work.batches) {
      const BatchLoss loss =
          objective_(job_.student, batch, 1.0 / static_cast<double>(std::max<int64_t>(1, work.targets)));
      sums += loss.sums;
      if (!std::isfinite(loss.sums.loss)) stop_at(state_.step + 1, "loss", loss.sums.loss);
      loss.loss.backward();
    }
    const double norm = optimizer_.gradient_norm();
    if (!std::isfinite(norm)) stop_at(state_.step + 1, "gradient's length", norm);
    const double rate = recipe_.schedule.rate(state_.step + 1);
    optimizer_.step(rate, recipe_.clip_norm > 0 ? std::max(1.0, norm / recipe_.clip_norm) : 1.0);
    optimizer_.zero_gradients();

    ++state_.step;
    state_.tokens += static_cast<uint64_t>(work.tokens);
    state_.targets += static_cast<uint64_t>(work.targets);
    state_.batcher = work.after;
    const double seconds = seconds_since(start);
    seconds_training_ += seconds;
    const double speed = static_cast<double>(work.tokens) / seconds;
    metrics.write(state_.step, "train", training_scalars(sums, rate, norm, speed, state_));
    const double targets = static_cast<double>(std::max<int64_t>(1, sums.targets));
    progress.set_note(fmt::format("loss {:.3f}, KL {:.3f}, {} tokens/s", sums.loss / targets, sums.divergence / targets,
                                  core::format_count(speed)));
    progress.advance();
  }

  [[noreturn]] void stop_at(int64_t step, std::string_view what, double value) {
    core::fail(
        "step {}: the {} is {}, so the run has diverged; {}. Lower the learning rate or lengthen the warm-up, and "
        "start anew in another --out",
        step, what, value,
        saved_at_ > 0 ? fmt::format("the checkpoint of step {} is kept", saved_at_) : "there is no checkpoint yet");
  }

  void validate(MetricsLog& metrics) {
    summary_.validation = evaluate_targets(job_.student, *validation_, objective_, nullptr);
    validated_at_ = state_.step;
    metrics.write(state_.step, "validation", validation_scalars(*summary_.validation));
  }

  void save() {
    summary_.checkpoint = checkpoints_.save(state_, job_.package, parameters_, optimizer_);
    saved_at_ = state_.step;
  }

  const TrainingJob& job_;
  const Recipe& recipe_;
  Objective objective_;
  data::NamedTensors parameters_;
  AdamW optimizer_;
  CheckpointStore checkpoints_;
  std::unique_ptr<data::Batcher> validation_;  // null where nothing is held out
  TrainerState state_;
  TrainingSummary summary_;
  int64_t saved_at_ = -1;
  int64_t validated_at_ = -1;
  double seconds_training_ = 0;
};

}  // namespace

nlohmann::ordered_json TrainingSummary::to_json() const {
  nlohmann::ordered_json json{{"steps", steps},
                              {"resumed_from", resumed_from},
                              {"interrupted", interrupted},
                              {"tokens", tokens},
                              {"seconds", seconds},
                              {"tokens_per_second", tokens_per_second},
                              {"loader_wait_share", loader_wait_share},
                              {"checkpoint", checkpoint.string()}};
  if (validation) json["validation"] = validation->to_json();
  return json;
}

TrainingSummary train(const TrainingJob& job) {
  return Run(job).run();
}

}  // namespace distill
