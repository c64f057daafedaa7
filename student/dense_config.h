// What a dense decoder (Llama, Qwen2, Qwen3, Mistral) is, read from a Hugging Face config.json. The families differ
// only in the options below; one table says which family has which.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "nn/causal_lm.h"
#include "nn/rotary_scaling.h"

namespace distill::student {

struct DenseConfig {
  std::string model_type;  // "llama", "qwen2", "qwen3" or "mistral"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_positions = 0;
  double norm_eps = 1e-6;
  double initializer_range = 0.02;
  bool qkv_bias = false;
  bool output_bias = false;  // of the attention's output projection
  bool mlp_bias = false;
  bool qk_norm = false;  // q and k are normalised per head before they rotate
  bool tie_embeddings = false;
  nn::RotaryScaling rotary;
  std::vector<int64_t> windows;  // [layers]: how many tokens a token sees, itself included; 0 for all

  nn::ModelShape shape() const;
  // Tied tensors counted once.
  int64_t parameter_count() const;
};

// True if parse_dense_config knows this "model_type".
bool is_dense_model_type(const std::string& model_type);

// Keys that are missing take the defaults of transformers. Throws Error "<location>: <key>: ..." for what is missing
// without a default, of the wrong type or absurd, and for settings that would need code this decoder lacks (another
// activation, quantised weights, ...).
DenseConfig parse_dense_config(const nlohmann::json& config, const std::string& location = "config.json");

// A config.json that transformers and parse_dense_config read as the same model. Special tokens are the caller's to
// add.
nlohmann::json dense_config_to_json(const DenseConfig& config);

}  // namespace distill::student
