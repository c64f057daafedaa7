// Dense decoders of the Llama kind: pre-norm blocks of grouped-query attention and a SwiGLU MLP (Touvron et al. 2023,
// Llama 2 §2.2), with the options of DenseConfig. One code for training and generation.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "data/model_files.h"
#include "data/weight_source.h"
#include "nn/causal_lm.h"
#include "nn/model_options.h"
#include "student/dense_config.h"

namespace distill::student {

// Throws Error naming file and key or tensor if the model is not dense, damaged, or needs what this decoder lacks.
std::unique_ptr<nn::CausalLM> load_dense_model(const data::ModelFiles& files, const nn::ModelOptions& options);
std::unique_ptr<nn::CausalLM> load_dense_model(const DenseConfig& config, const data::WeightSource& weights,
                                               const nn::ModelOptions& options);

// Fresh weights as transformers initialises them: matrices normal with deviation config "initializer_range", biases
// zero, norms one. Each row of each tensor has its own stream of random numbers under `seed`.
std::unique_ptr<nn::CausalLM> make_dense_model(const nlohmann::json& config, const nn::ModelOptions& options,
                                               uint64_t seed);

}  // namespace distill::student
