// AdamW (Loshchilov & Hutter 2019, algorithm 2) over fp32 master weights, all tensors in LibTorch's fused kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "data/safetensors_writer.h"
#include "data/weight_source.h"

namespace distill {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;  // of matrices; norms and biases (tensors of one dimension) have none
};

class AdamW {
 public:
  // `parameters`: fp32 leaves with their names, as nn::CausalLM::parameters() gives them.
  AdamW(data::NamedTensors parameters, const AdamWOptions& options);

  // Length of all gradients taken as one vector, summed in fp64. Parameters without a gradient count as 0.
  double gradient_norm() const;

  // Updates every parameter that has a gradient, after dividing the gradients by `gradient_divisor` (clipping).
  void step(double learning_rate, double gradient_divisor = 1.0);
  void zero_gradients();

  // "exp_avg.<name>", "exp_avg_sq.<name>" and "steps" [parameters] fp32: what a checkpoint needs to continue exactly.
  data::NamedTensors state() const;
  // Takes over what state() of an equal optimizer gave.
  void set_state(const data::NamedTensors& state);
  // Throws Error naming the file and tensor if one is missing or of another shape.
  void load_state(const data::WeightSource& source);

 private:
  data::NamedTensors parameters_;
  AdamWOptions options_;
  std::vector<at::Tensor> averages_;         // of the gradients
  std::vector<at::Tensor> square_averages_;  // of their squares
  std::vector<at::Tensor> steps_;            // fp32 scalars, as the fused kernel wants them
};

}  // namespace distill
