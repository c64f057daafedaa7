// Trains a student on stored traces: batches, objective, optimizer, validation, metrics and checkpoints in one loop.
// Deterministic: the same traces, student, recipe, thread and rank count give bitwise the same weights, whether the run
// was killed and resumed or not. The number of ranks changes nothing but rounding.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/tokenizer.h"
#include "data/trace_source.h"
#include "distill/evaluation.h"
#include "distill/model_package.h"
#include "distill/recipe.h"
#include "nn/causal_lm.h"
#include "nn/rank_group.h"

namespace distill {

struct TrainingJob {
  nn::CausalLM& student;  // trainable, computing in the recipe's precision
  ModelPackage package;   // goes into every checkpoint
  std::shared_ptr<const data::TraceSource> traces;
  std::filesystem::path run;  // metrics and checkpoints; a run found there is continued
  Recipe recipe;
  // Teachers that score the tokens in place of the traces' stored distributions, if any; the first may write answers.
  std::vector<OnlineTeacher> teachers{};
  std::shared_ptr<const data::Tokenizer> tokenizer{};  // for the report's answers; null leaves them out
  std::vector<int32_t> stop_tokens{};                  // that end an answer written during training or for the report
  // The job's ranks, each of which calls train() with the same job, or null. Rank 0 owns `run`, the others need not see
  // it; a run may be continued by another number of ranks.
  nn::RankGroup* ranks = nullptr;
};

struct TrainingSummary {
  int64_t steps = 0;           // done in all
  int64_t resumed_from = 0;    // step of the checkpoint this began with, 0 if there was none
  int64_t skipped = 0;         // steps of this time that the guard kept out of the weights
  int64_t rollbacks = 0;       // this time
  bool stopped_early = false;  // validation no longer improved
  bool interrupted = false;    // by SIGINT or SIGTERM: steps are missing
  uint64_t tokens = 0;         // trained on in all
  double seconds = 0;          // this time
  double tokens_per_second = 0;
  double loader_wait_share = 0;          // of this time, spent waiting for batches
  double packing_share = 0;              // tokens of the batches over the room there was for them
  std::optional<Evaluation> validation;  // of the final weights, where anything is held out
  std::filesystem::path checkpoint;  // the last one; of `steps`, unless something was wrong with them when interrupted
  std::filesystem::path report;      // of a run that came to its end, in rank 0

  nlohmann::ordered_json to_json() const;
};

// Asks core::interrupt_requested() after every step; a signal to one rank ends all after the same one. Throws Error if
// the run in `job.run` is of another student, recipe, traces or teachers; if the loss or gradient keeps not being a
// number or far longer than usual, after steps were skipped and the run has gone back to its last checkpoint some
// times, or is so when the last step is done, that checkpoint intact; and on a full disk, likewise. The other ranks
// learn of it from whoever owns the group, nn::RankGroup::report_failure().
TrainingSummary train(const TrainingJob& job);

}  // namespace distill
