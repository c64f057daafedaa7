#include "teacher/deepseek_weights.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/log.h"

namespace distill::teacher {
namespace {

constexpr std::string_view kScaleSuffix = "_scale_inv";

class Table {
 public:
  explicit Table(const DeepseekConfig& config) : config_(config) {}

  void add(std::string name, std::vector<int64_t> shape, TensorKind kind) {
    tensors_.push_back({.name = std::move(name), .shape = std::move(shape), .kind = kind});
  }

  void add_decoder_layer(int64_t layer) {
    vector(layer, "input_layernorm.weight", config_.hidden_size);
    add_attention(layer);
    vector(layer, "post_attention_layernorm.weight", config_.hidden_size);
    config_.has_experts(layer) ? add_experts(layer) : add_mlp(layer, "mlp", config_.intermediate_size);
  }

  void add_mtp_layer(int64_t layer) {
    const int64_t hidden = config_.hidden_size;
    add(layer_tensor(layer, "embed_tokens.weight"), {config_.vocab_size, hidden}, TensorKind::kOptionalMatrix);
    vector(layer, "enorm.weight", hidden);
    vector(layer, "hnorm.weight", hidden);
    matrix(layer, "eh_proj.weight", hidden, 2 * hidden);
    add_decoder_layer(layer);
    vector(layer, "shared_head.norm.weight", hidden);
    add(layer_tensor(layer, "shared_head.head.weight"), {config_.vocab_size, hidden}, TensorKind::kOptionalMatrix);
  }

  std::vector<DeepseekTensor> take() { return std::move(tensors_); }

 private:
  void matrix(int64_t layer, std::string_view part, int64_t out, int64_t in) {
    add(layer_tensor(layer, part), {out, in}, TensorKind::kMatrix);
  }
  void vector(int64_t layer, std::string_view part, int64_t size) {
    add(layer_tensor(layer, part), {size}, TensorKind::kVector);
  }

  void add_attention(int64_t layer) {
    const MlaConfig& attention = config_.attention;
    const int64_t hidden = config_.hidden_size;
    const auto projection = [&](const std::string& part, int64_t out, int64_t in, bool bias) {
      matrix(layer, part + ".weight", out, in);
      if (bias) vector(layer, part + ".bias", out);
    };
    const int64_t queries = attention.num_heads * attention.query_dim();
    if (attention.query_rank > 0) {
      projection("self_attn.q_a_proj", attention.query_rank, hidden, attention.bias);
      vector(layer, "self_attn.q_a_layernorm.weight", attention.query_rank);
      projection("self_attn.q_b_proj", queries, attention.query_rank, false);
    } else {
      projection("self_attn.q_proj", queries, hidden, false);
    }
    projection("self_attn.kv_a_proj_with_mqa", attention.latent_rank + attention.rope_dim, hidden, attention.bias);
    vector(layer, "self_attn.kv_a_layernorm.weight", attention.latent_rank);
    projection("self_attn.kv_b_proj", attention.num_heads * (attention.nope_dim + attention.value_dim),
               attention.latent_rank, false);
    projection("self_attn.o_proj", hidden, attention.num_heads * attention.value_dim, attention.bias);
  }

  void add_mlp(int64_t layer, const std::string& part, int64_t intermediate) {
    matrix(layer, part + ".gate_proj.weight", intermediate, config_.hidden_size);
    matrix(layer, part + ".up_proj.weight", intermediate, config_.hidden_size);
    matrix(layer, part + ".down_proj.weight", config_.hidden_size, intermediate);
  }

  void add_experts(int64_t layer) {
    const MoeConfig& moe = config_.moe;
    matrix(layer, "mlp.gate.weight", moe.routed_experts, config_.hidden_size);
    if (moe.correction_bias) vector(layer, "mlp.gate.e_score_correction_bias", moe.routed_experts);
    for (int64_t e = 0; e < moe.routed_experts; ++e) {
      add_mlp(layer, fmt::format("mlp.experts.{}", e), moe.intermediate_size);
    }
    if (moe.shared_experts > 0) add_mlp(layer, "mlp.shared_experts", moe.shared_experts * moe.intermediate_size);
  }

  const DeepseekConfig& config_;
  std::vector<DeepseekTensor> tensors_;
};

// What checkpoints carry besides: rotary frequencies as old versions of transformers saved them (they follow from the
// config), and the head of a tied model (it repeats the embedding).
bool is_superfluous(const DeepseekConfig& config, std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || (config.tie_embeddings && name == kHeadName);
}

bool is_plain_type(std::string_view dtype) {
  return dtype == "F32" || dtype == "BF16" || dtype == "F16";
}

std::vector<int64_t> scale_shape(const std::vector<int64_t>& shape) {
  std::vector<int64_t> blocks;
  blocks.reserve(shape.size());
  for (const int64_t size : shape) blocks.push_back((size + kernels::kScaleBlock - 1) / kernels::kScaleBlock);
  return blocks;
}

}  // namespace

std::string layer_tensor(int64_t layer, std::string_view part) {
  return fmt::format("model.layers.{}.{}", layer, part);
}

std::string expert_tensor(int64_t layer, int64_t expert, std::string_view part) {
  return fmt::format("model.layers.{}.mlp.experts.{}.{}", layer, expert, part);
}

std::vector<DeepseekTensor> deepseek_tensors(const DeepseekConfig& config, int64_t mtp_layers) {
  Table table(config);
  table.add(std::string(kEmbeddingName), {config.vocab_size, config.hidden_size}, TensorKind::kMatrix);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) table.add_decoder_layer(layer);
  table.add(std::string(kFinalNormName), {config.hidden_size}, TensorKind::kVector);
  if (!config.tie_embeddings) {
    table.add(std::string(kHeadName), {config.vocab_size, config.hidden_size}, TensorKind::kMatrix);
  }
  for (int64_t i = 0; i < mtp_layers; ++i) table.add_mtp_layer(config.num_layers + i);
  return table.take();
}

DeepseekWeights::DeepseekWeights(const DeepseekConfig& config, std::shared_ptr<const data::WeightSource> source)
    : source_(std::move(source)) {
  find_mtp_layers(config);
  check_number_of_experts(config);
  const std::vector<DeepseekTensor> tensors = deepseek_tensors(config, mtp_layers_);
  std::set<std::string> expected;
  for (const DeepseekTensor& tensor : tensors) {
    if (has(tensor.name)) {
      check_tensor(config, tensor, expected);
    } else if (tensor.kind != TensorKind::kOptionalMatrix) {
      fail_missing(config, tensors);
    }
  }
  for (const data::TensorInfo& tensor : source_->tensors()) {
    core::check(expected.contains(tensor.name) || is_superfluous(config, tensor.name),
                "{}: tensor '{}' has no place in a {} model as its config describes it", source_->location(),
                tensor.name, config.model_type);
  }
}

void DeepseekWeights::find_mtp_layers(const DeepseekConfig& config) {
  for (int64_t i = 0; i < config.mtp_layers; ++i) {
    const std::string prefix = layer_tensor(config.num_layers + i, "");
    if (std::ranges::any_of(source_->tensors(), [&](const auto& tensor) { return tensor.name.starts_with(prefix); })) {
      mtp_layers_ = config.mtp_layers;
      return;
    }
  }
  if (config.mtp_layers > 0) {
    core::log::info("{}: the checkpoint comes without its multi-token-prediction modules", source_->location());
  }
}

// Before their names are listed: damaged sizes would ask for more of them than fit into memory.
void DeepseekWeights::check_number_of_experts(const DeepseekConfig& config) const {
  constexpr int64_t kMatrices = 3;  // of an expert
  int64_t layers = 0;
  for (int64_t layer = 0; layer < config.num_layers + mtp_layers_; ++layer) layers += config.has_experts(layer) ? 1 : 0;
  const int64_t matrices = layers * config.moe.routed_experts * kMatrices;
  const auto found = static_cast<int64_t>(source_->tensors().size());
  core::check(
      found >= matrices,
      "{}: the checkpoint has {} tensors; num_hidden_layers, {}, and n_routed_experts, {}, ask for {} matrices of "
      "experts alone",
      source_->location(), found, config.num_layers, config.moe.routed_experts, matrices);
}

void DeepseekWeights::check_tensor(const DeepseekConfig& config, const DeepseekTensor& tensor,
                                   std::set<std::string>& expected) const {
  const data::TensorInfo& found = *source_->find(tensor.name);
  core::check(found.shape == tensor.shape, "{}: tensor '{}' has the shape [{}], its config asks for [{}]",
              source_->location(), tensor.name, fmt::join(found.shape, ", "), fmt::join(tensor.shape, ", "));
  expected.insert(tensor.name);
  if (found.dtype != "F8_E4M3" || tensor.kind == TensorKind::kVector) {
    core::check(is_plain_type(found.dtype), "{}: tensor '{}' is stored as {}; {}", source_->location(), tensor.name,
                found.dtype,
                tensor.kind == TensorKind::kVector ? "it must be F32, BF16 or F16"
                                                   : "a matrix must be F32, BF16, F16 or F8_E4M3");
    return;
  }
  core::check(config.fp8,
              "{}: tensor '{}' is stored as F8_E4M3, but the config has no quantization_config that says so",
              source_->location(), tensor.name);
  const std::string name = tensor.name + std::string(kScaleSuffix);
  const data::TensorInfo* scales = source_->find(name);
  core::check(scales != nullptr, "{}: tensor '{}' is missing; '{}' is stored as F8_E4M3", source_->location(), name,
              tensor.name);
  core::check(scales->shape == scale_shape(tensor.shape) && scales->dtype == "F32",
              "{}: tensor '{}' is {} [{}]; blocks of {} x {} of '{}' need F32 [{}]", source_->location(), name,
              scales->dtype, fmt::join(scales->shape, ", "), kernels::kScaleBlock, kernels::kScaleBlock, tensor.name,
              fmt::join(scale_shape(tensor.shape), ", "));
  expected.insert(name);
}

void DeepseekWeights::fail_missing(const DeepseekConfig& config, const std::vector<DeepseekTensor>& tensors) const {
  constexpr size_t kMostNames = 5;
  std::vector<std::string> missing;
  for (const DeepseekTensor& tensor : tensors) {
    if (tensor.kind != TensorKind::kOptionalMatrix && !has(tensor.name)) missing.push_back(tensor.name);
  }
  const size_t more = missing.size() - std::min(missing.size(), kMostNames);
  missing.resize(missing.size() - more);
  core::fail("{}: tensors are missing: '{}'{}; its config describes a {} model of {} layers with {} experts",
             source_->location(), fmt::join(missing, "', '"), more > 0 ? fmt::format(" and {} more", more) : "",
             config.model_type, config.num_layers, config.moe.routed_experts);
}

kernels::StoredWeight DeepseekWeights::matrix(std::string_view name, at::ScalarType compute) const {
  kernels::StoredWeight weight{.values = source_->load(name), .scales = {}};
  const at::ScalarType type = weight.values.scalar_type();
  if (type == at::kFloat8_e4m3fn) {
    const std::string scale_name = std::string(name) + std::string(kScaleSuffix);
    weight.scales = source_->load(scale_name);
    core::check((weight.scales > 0).logical_and(weight.scales.isfinite()).all().item<bool>(),
                "{}: tensor '{}' has scales that are not finite and positive; the file is damaged", source_->location(),
                scale_name);
  } else if (type == at::kHalf || (type == at::kFloat && compute != at::kFloat)) {
    weight.values = weight.values.to(compute);
  }
  return weight;
}

at::Tensor DeepseekWeights::vector(std::string_view name) const {
  const at::Tensor vector = source_->load(name).to(at::kFloat);
  check_finite(name, vector);
  return vector;
}

void DeepseekWeights::check_finite(std::string_view name, const at::Tensor& values) const {
  core::check(values.to(at::kFloat).isfinite().all().item<bool>(),
              "{}: tensor '{}' has entries that are not finite numbers; the file is damaged", source_->location(),
              name);
}

}  // namespace distill::teacher
