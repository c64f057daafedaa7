// A GGUF file's metadata as the config.json that Hugging Face would have for the same model.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "data/gguf.h"

namespace distill::data {

// Whether models of this "general.architecture" can be loaded: "llama", "qwen2" and "qwen3".
bool gguf_architecture_supported(std::string_view architecture);

// "model_type", sizes, "rms_norm_eps", "rope_theta", "rope_scaling", "tie_word_embeddings", "bos_token_id",
// "eos_token_id" (a list where there are several) and so on. Throws Error naming the file and key if one that the
// architecture needs is missing or makes no sense. Of an architecture that is not supported, "model_type" is its GGUF
// name and whatever is missing is left out.
nlohmann::json gguf_config(const GgufFile& file);

}  // namespace distill::data
