// A GGUF file's tensors as a Hugging Face model has them.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>

#include "data/gguf.h"
#include "data/weight_source.h"

namespace distill::data {

// The tensors under Hugging Face's names ("model.layers.0.self_attn.q_proj.weight") and in its layout: the rows of
// llama's query and key projections, which llama.cpp keeps in another order, are put back. `config` is gguf_config() of
// the file. Throws Error naming the file if its architecture is not supported or a tensor has no place in it.
std::shared_ptr<const WeightSource> open_gguf_weights(std::shared_ptr<const GgufFile> file,
                                                      const nlohmann::json& config);

}  // namespace distill::data
