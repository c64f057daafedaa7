// What a DeepSeek model is (V2, V2-Lite, V3, R1, and those built like them: Kimi K2, Moonlight), read from a Hugging
// Face config.json: the published dialect ("rope_theta", "rope_scaling") and that of transformers 5
// ("rope_parameters").
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "kernels/moe_router/moe_router.h"
#include "nn/causal_lm.h"
#include "nn/rotary_scaling.h"

namespace distill::teacher {

// Multi-head latent attention (DeepSeek-V2 §2.1). A head's query and key have `nope_dim` dimensions without and
// `rope_dim` with rotary embedding; its value has `value_dim`.
struct MlaConfig {
  int64_t num_heads = 0;
  int64_t query_rank = 0;  // of the compressed query; 0 if queries are projected directly
  int64_t latent_rank = 0;
  int64_t nope_dim = 0;
  int64_t rope_dim = 0;
  int64_t value_dim = 0;
  bool bias = false;         // of the down-projections and the output projection
  bool interleaved = true;   // dimensions 2i and 2i + 1 rotate together; otherwise i and i + rope_dim / 2
  double softmax_scale = 0;  // of q k^T, YaRN's share included

  int64_t query_dim() const { return nope_dim + rope_dim; }
};

// Mixture-of-experts layers (DeepSeek-V2 §2.2, DeepSeek-V3 §2.1.2).
struct MoeConfig {
  int64_t routed_experts = 0;  // 0: every layer is dense
  int64_t shared_experts = 0;
  int64_t intermediate_size = 0;  // of one expert
  int64_t first_layer = 0;        // layers before it are dense
  int64_t layer_interval = 1;     // from there on, layers whose number it divides have experts
  bool correction_bias = false;   // "noaux_tc": a bias per expert takes part in the choice
  kernels::RouterOptions router;
};

struct DeepseekConfig {
  std::string model_type;  // "deepseek_v2", "deepseek_v3" or "kimi_k2"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // of dense layers
  int64_t num_layers = 0;
  int64_t mtp_layers = 0;  // multi-token-prediction modules behind them, where the checkpoint has them
  int64_t max_positions = 0;
  double norm_eps = 1e-6;
  bool tie_embeddings = false;
  bool fp8 = false;  // matrices may be stored in FP8 with one scale per 128 x 128 block
  MlaConfig attention;
  MoeConfig moe;
  nn::RotaryScaling rotary;

  bool has_experts(int64_t layer) const {
    return moe.routed_experts > 0 && layer >= moe.first_layer && layer % moe.layer_interval == 0;
  }
  nn::ModelShape shape() const;
};

// True if parse_deepseek_config knows this "model_type".
bool is_deepseek_model_type(const std::string& model_type);

// Keys that are missing take defaults where DeepSeek's code and transformers agree on one, in the family at hand; a
// missing n_routed_experts, n_shared_experts or q_lora_rank means that there are none. Throws Error
// "<location>: <key>: ..." for what is missing without a default, of the wrong type or absurd, and for settings this
// code lacks (another activation, scoring function, top-k method or quantisation, ...).
DeepseekConfig parse_deepseek_config(const nlohmann::json& config, const std::string& location = "config.json");

}  // namespace distill::teacher
