// Any model of ours from its files.
#pragma once

#include <memory>

#include "data/model_files.h"
#include "nn/causal_lm.h"
#include "nn/model_options.h"

namespace distill {

// Chooses the code by "model_type" of the model's config. Throws Error naming the file and what is wrong with it, or
// the model types known here.
std::unique_ptr<nn::CausalLM> load_model(const data::ModelFiles& files, const nn::ModelOptions& options);

// Throws as load_model() does if the config makes no sense or a tensor is missing, superfluous or of another shape than
// the config says. Reads no weights.
void check_model(const data::ModelFiles& files);

}  // namespace distill
