// Tiny random DeepSeek checkpoints in memory, for the tests of this folder.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "teacher/deepseek_config.h"
#include "teacher/deepseek_weights.h"
#include "tests/student/memory_weights.h"

namespace distill::teacher {

using student::MemoryWeights;

inline nlohmann::json tiny_config() {
  return nlohmann::json::parse(R"({
    "model_type": "deepseek_v3", "vocab_size": 61, "hidden_size": 72, "intermediate_size": 96,
    "moe_intermediate_size": 24, "num_hidden_layers": 3, "num_nextn_predict_layers": 1, "num_attention_heads": 3,
    "n_shared_experts": 1, "n_routed_experts": 8, "routed_scaling_factor": 2.5, "kv_lora_rank": 20,
    "q_lora_rank": 28, "qk_rope_head_dim": 8, "v_head_dim": 12, "qk_nope_head_dim": 10, "n_group": 4, "topk_group": 2,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1, "max_position_embeddings": 128})");
}

inline std::map<std::string, at::Tensor> random_tensors(const DeepseekConfig& config,
                                                        at::ScalarType type = at::kFloat) {
  std::map<std::string, at::Tensor> tensors;
  const at::Generator generator = at::detail::createCPUGenerator(1);
  for (const DeepseekTensor& tensor : deepseek_tensors(config, config.mtp_layers)) {
    const at::Tensor noise = 0.2 * at::randn(tensor.shape, generator, at::kFloat);
    const bool norm = tensor.name.ends_with("norm.weight");
    tensors[tensor.name] = (norm ? 1 + noise : noise).to(tensor.kind == TensorKind::kVector ? at::kFloat : type);
  }
  return tensors;
}

// Every projection in FP8 with its scales; says so in `json`.
inline void quantise_projections(std::map<std::string, at::Tensor>& tensors, nlohmann::json& json) {
  json["quantization_config"] = {{"quant_method", "fp8"}};
  const auto copy = tensors;
  for (const auto& [name, tensor] : copy) {
    if (name.find("_proj") == std::string::npos || tensor.dim() != 2) continue;
    const kernels::StoredWeight weight = kernels::quantise_fp8(tensor);
    tensors[name] = weight.values;
    tensors[name + "_scale_inv"] = weight.scales;
  }
}

}  // namespace distill::teacher
