#include "student/dense_weights.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/error.h"

namespace distill::student {
namespace {

// What checkpoints carry besides: rotary frequencies as older versions of transformers saved them (they follow from the
// config), and the head of a tied model (it repeats the embedding).
bool is_superfluous(const DenseConfig& config, std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || (config.tie_embeddings && name == kHeadName);
}

void add_layer(const DenseConfig& config, int64_t layer, std::vector<DenseWeight>& weights) {
  const auto add = [&](std::string_view part, std::vector<int64_t> shape) {
    weights.push_back({.name = layer_weight_name(layer, part), .shape = std::move(shape)});
  };
  const auto add_projection = [&](const std::string& part, int64_t out, int64_t in, bool bias) {
    add(part + ".weight", {out, in});
    if (bias) add(part + ".bias", {out});
  };
  const int64_t hidden = config.hidden_size;
  const int64_t q = config.num_heads * config.head_dim;
  const int64_t kv = config.num_kv_heads * config.head_dim;
  add_projection("self_attn.q_proj", q, hidden, config.qkv_bias);
  add_projection("self_attn.k_proj", kv, hidden, config.qkv_bias);
  add_projection("self_attn.v_proj", kv, hidden, config.qkv_bias);
  add_projection("self_attn.o_proj", hidden, q, config.output_bias);
  if (config.qk_norm) {
    add("self_attn.q_norm.weight", {config.head_dim});
    add("self_attn.k_norm.weight", {config.head_dim});
  }
  add_projection("mlp.gate_proj", config.intermediate_size, hidden, config.mlp_bias);
  add_projection("mlp.up_proj", config.intermediate_size, hidden, config.mlp_bias);
  add_projection("mlp.down_proj", hidden, config.intermediate_size, config.mlp_bias);
  add("input_layernorm.weight", {hidden});
  add("post_attention_layernorm.weight", {hidden});
}

// A sum is not finite if a term is not; sums that merely overflow are looked at term by term.
bool all_finite(const at::Tensor& tensor) {
  if (std::isfinite(tensor.sum(at::kDouble).item<double>())) return true;
  return tensor.isfinite().all().item<bool>();
}

}  // namespace

std::string layer_weight_name(int64_t layer, std::string_view part) {
  return fmt::format("model.layers.{}.{}", layer, part);
}

std::vector<DenseWeight> dense_weights(const DenseConfig& config) {
  std::vector<DenseWeight> weights;
  weights.push_back({.name = std::string(kEmbeddingName), .shape = {config.vocab_size, config.hidden_size}});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) add_layer(config, layer, weights);
  weights.push_back({.name = std::string(kFinalNormName), .shape = {config.hidden_size}});
  if (!config.tie_embeddings) {
    weights.push_back({.name = std::string(kHeadName), .shape = {config.vocab_size, config.hidden_size}});
  }
  return weights;
}

DenseWeightReader::DenseWeightReader(const DenseConfig& config, const data::WeightSource& source) : source_(source) {
  std::set<std::string, std::less<>> expected;
  for (const DenseWeight& weight : dense_weights(config)) {
    const data::TensorInfo* found = source.find(weight.name);
    core::check(found != nullptr, "{}: tensor '{}' is missing; its config describes a {} model with {} layers",
                source.location(), weight.name, config.model_type, config.num_layers);
    core::check(found->shape == weight.shape, "{}: tensor '{}' has the shape [{}], its config asks for [{}]",
                source.location(), weight.name, fmt::join(found->shape, ", "), fmt::join(weight.shape, ", "));
    expected.insert(weight.name);
  }
  for (const data::TensorInfo& tensor : source.tensors()) {
    core::check(expected.contains(tensor.name) || is_superfluous(config, tensor.name),
                "{}: tensor '{}' has no place in a {} model as its config describes it", source.location(), tensor.name,
                config.model_type);
  }
}

at::Tensor DenseWeightReader::load(const DenseWeight& weight) const {
  const at::Tensor tensor = source_.load(weight.name);
  const auto type = tensor.scalar_type();
  core::check(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble,
              "{}: tensor '{}' is stored as {}; weights must be F32, BF16, F16 or F64", source_.location(), weight.name,
              source_.find(weight.name)->dtype);
  core::check(all_finite(tensor), "{}: tensor '{}' has entries that are not finite numbers; the file is damaged",
              source_.location(), weight.name);
  return tensor;
}

}  // namespace distill::student
