// Turns gradients into new weights: AdamW or Muon over fp32 master weights, with settings per group of parameters, an
// average of the weights over time, and moments that several ranks may share out among themselves.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/safetensors_writer.h"
#include "data/weight_source.h"
#include "nn/rank_group.h"

namespace distill {

enum class OptimizerKind : uint8_t {
  kAdamW,  // Loshchilov & Hutter 2019, algorithm 2, in LibTorch's fused kernel
  kMuon,   // muon.h for the matrices inside the model; AdamW for embeddings, the head, norms, biases and projectors
};
std::string_view to_string(OptimizerKind kind);
// "adamw" or "muon". Throws UsageError.
OptimizerKind parse_optimizer(std::string_view name);

// Settings for the parameters whose names match `pattern` (* and ? as in a shell).
struct ParameterGroup {
  std::string pattern;
  double learning_rate = 1.0;  // times the schedule's
  double weight_decay = 1.0;   // times the usual one
  bool frozen = false;         // these keep their values
};

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double momentum = 0.95;     // of Muon
  double weight_decay = 0.1;  // of matrices; norms and biases (tensors of one dimension) have none
  // Decay of the average of the weights (EMA): after each step, average <- d average + (1 - d) weights with
  // d = min(this, (1 + step) / (10 + step)). 0 keeps none.
  double average = 0.0;
  std::vector<ParameterGroup> groups{};  // the first that matches applies
  // Each rank keeps and applies the moments of a share of the parameters (ZeRO stage 1, Rajbhandari et al. 2020,
  // arXiv 1910.02054, §5.1). The results are the same, and so are the checkpoints.
  bool shard = false;
};

class Optimizer {
 public:
  // `parameters`: fp32 leaves with their names, as nn::CausalLM::parameters() gives them; frozen ones cease to require
  // gradients. `ranks` may be null, and is used by sharding alone; it outlives the optimizer. Throws UsageError if a
  // group's pattern matches nothing or nothing is left to train.
  Optimizer(const data::NamedTensors& parameters, const OptimizerOptions& options,
            const nn::RankGroup* ranks = nullptr);

  // The parameters that are not frozen.
  const data::NamedTensors& trained() const { return trained_; }

  // Length of all gradients taken as one vector, summed in fp64. Parameters without a gradient count as 0.
  double gradient_norm() const;

  // Updates every parameter that has a gradient, after dividing the gradients by `gradient_divisor` (clipping).
  void step(double learning_rate, double gradient_divisor = 1.0);
  void zero_gradients();

  // After `step` steps in all.
  void update_averages(int64_t step);
  bool averages() const { return options_.average > 0; }
  // Exchanges the weights and their averages; a second time puts things back.
  void swap_averages();
  // `weights`, all of the model's, with the averages in place of those that are averaged.
  data::NamedTensors averaged(const data::NamedTensors& weights) const;

  // What a checkpoint needs to continue exactly: "exp_avg.<name>", "exp_avg_sq.<name>" and "steps" [parameters] fp32 of
  // AdamW, "momentum.<name>" of Muon, and where averages are kept "weight.<name>" (the checkpoint's own weights are the
  // averages then). Where sharded, every rank calls it and ranks other than 0 get nothing.
  data::NamedTensors state() const;
  // Reads what state() gave. Throws Error naming the file and tensor if one is missing or of another shape.
  data::NamedTensors read_state(const data::WeightSource& source) const;
  // Takes over such a state, after the checkpoint's weights are in the parameters. Where there are ranks, each calls it
  // and only rank 0's `state` counts; `ranks` may be null. An empty state begins anew.
  void set_state(const data::NamedTensors& state, const nn::RankGroup* ranks);

 private:
  struct Slot {
    std::string name;
    at::Tensor parameter;
    bool muon = false;
    double learning_rate = 1.0;
    double weight_decay = 0.0;
    int owner = 0;                 // the rank that updates it
    at::Tensor first{}, second{};  // moments, or Muon's momentum; undefined where another rank owns the parameter
    at::Tensor steps{};            // fp32 scalar, as the fused kernel wants it; of AdamW, in every rank
    at::Tensor average{};          // or undefined
  };
  struct StateTensor {
    std::string name;
    at::Tensor tensor;  // undefined where another rank owns it
    at::IntArrayRef sizes;
    int owner;
  };
  std::vector<StateTensor> state_tensors() const;
  bool owns(const Slot& slot) const;
  void share_out();

  OptimizerOptions options_;
  const nn::RankGroup* ranks_;  // null unless sharded
  data::NamedTensors trained_;
  std::vector<Slot> slots_;
};

}  // namespace distill
