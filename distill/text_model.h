// A model with what turns text into its tokens and back, ready to generate.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "data/model_files.h"
#include "data/tokenizer.h"
#include "nn/causal_lm.h"
#include "nn/model_options.h"

namespace distill {

struct TextModel {
  data::ModelFiles files;  // its chat template is read from here where it is needed
  std::unique_ptr<nn::CausalLM> model;
  std::shared_ptr<const data::Tokenizer> tokenizer;
  std::vector<int32_t> stop_tokens;  // that end an answer
};

// Throws Error naming the file that is missing or damaged, or both sizes if the tokenizer has ids that the model lacks.
TextModel load_text_model(const std::filesystem::path& path, const nn::ModelOptions& options = {});

}  // namespace distill
