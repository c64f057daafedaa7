// A model as Hugging Face's libraries know it: a directory of weights, config.json and the texts that belong to them.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "data/model_files.h"
#include "data/safetensors_writer.h"

namespace distill {

// All but the weights.
struct ModelPackage {
  nlohmann::json config;                     // config.json
  std::map<std::string, std::string> files;  // name -> contents: tokenizer.json, tokenizer_config.json, ...
};

// The tokenizer, chat template and generation settings of `source` as files: those of a Hugging Face directory as they
// are, those of a GGUF file as transformers would have written them. Throws Error if `source` has no tokenizer.
std::map<std::string, std::string> tokenizer_files(const data::ModelFiles& source);

// Writes the package and its weights into `directory`, which must exist. Tensors beyond `max_shard_bytes` go to several
// files.
void write_model_package(const std::filesystem::path& directory, const ModelPackage& package,
                         const data::NamedTensors& weights, uint64_t max_shard_bytes = 5'000'000'000);

}  // namespace distill
