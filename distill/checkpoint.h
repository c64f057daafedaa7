// The checkpoints of a run:
//   run/latest                the name of the newest complete checkpoint
//   run/checkpoint-00000200/  a Hugging Face model directory (fp32 weights) and beside it
//     trainer.json            TrainerState
//     optimizer.safetensors   Optimizer::state(), and as "auxiliary.<name>" what is trained but no part of the model
// A checkpoint appears under its name only when it is complete and on disk, and `latest` names it only after that.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/file_descriptor.h"
#include "data/batcher.h"
#include "data/safetensors_writer.h"
#include "distill/model_package.h"
#include "distill/optimizer.h"
#include "distill/recipe.h"

namespace distill {

// Where a run stands, beside its weights and moments.
struct TrainerState {
  int64_t step = 0;      // steps done
  uint64_t tokens = 0;   // trained on so far
  uint64_t targets = 0;  //   and how many of them had a target
  data::BatcherState batcher;
  nlohmann::json recipe;
  nlohmann::json provenance;                          // of the traces
  nlohmann::json teachers = nlohmann::json::array();  // that score the tokens during training; describe_teachers()
  nlohmann::json guard;                               // SpikeGuard's, or null
  // For early stopping: the least validation loss so far, if there was one, and how many validations ago.
  std::optional<double> best_validation{};
  int64_t validations_since_best = 0;

  nlohmann::json to_json() const;
  static TrainerState from_json(const nlohmann::json& json, const std::string& location);
};

// Not thread-safe.
class CheckpointStore {
 public:
  // Creates `run` if need be and holds it against other runs as long as the object lives; removes what a killed run
  // left half-written. Throws Error if another process is training there.
  CheckpointStore(std::filesystem::path run, int64_t keep);

  // The newest complete checkpoint's directory, if there is one.
  std::optional<std::filesystem::path> latest() const;

  // Writes a checkpoint with an optimizer's state(), makes it the latest and removes the oldest ones beyond `keep`. If
  // this throws, the latest checkpoint is still the one before. Returns its directory.
  std::filesystem::path save(const TrainerState& state, const ModelPackage& package, const data::NamedTensors& weights,
                             const data::NamedTensors& auxiliary, const data::NamedTensors& optimizer);

  const std::filesystem::path& run() const { return run_; }

 private:
  void prune() const;

  std::filesystem::path run_;
  int64_t keep_;
  core::FileDescriptor lock_;
};

struct LoadedCheckpoint {
  TrainerState state;
  data::NamedTensors optimizer;  // for Optimizer::set_state()
};
// Copies a checkpoint's weights into `weights` and `auxiliary` and reads the rest. Throws Error naming the file and
// what differs if it is another model's: the config, or a tensor's name or shape.
LoadedCheckpoint load_checkpoint(const std::filesystem::path& checkpoint, const ModelPackage& package,
                                 const data::NamedTensors& weights, const data::NamedTensors& auxiliary,
                                 const Optimizer& optimizer);

// The settings of the run that wrote a checkpoint. Throws Error if the directory is none of ours.
Recipe read_checkpoint_recipe(const std::filesystem::path& checkpoint);

}  // namespace distill
