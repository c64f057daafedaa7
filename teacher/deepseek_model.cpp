#include "teacher/deepseek_model.h"

#include <ATen/ATen.h>

#include "core/error.h"
#include "core/heap.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/stored_linear/stored_linear.h"
#include "teacher/latent_cache.h"

namespace distill::teacher {
namespace {

at::Tensor entries_of(nn::KvCache* cache, int64_t layer) {
  return cache != nullptr ? static_cast<LatentKvCache*>(cache)->layer(layer) : at::Tensor();
}

}  // namespace

DeepseekModel::DeepseekModel(DeepseekConfig config, std::shared_ptr<const data::WeightSource> source,
                             const nn::ModelOptions& options)
    : config_(std::move(config)),
      shape_(config_.shape()),
      compute_(options.compute),
      fp8_cache_(options.fp8_cache),
      inverse_frequencies_(config_.rotary.inverse_frequencies(config_.attention.rope_dim)) {
  core::check(!options.trainable, "{} models run here but cannot be trained", config_.model_type);
  TORCH_CHECK(compute_ == at::kFloat || compute_ == at::kBFloat16, "a model computes in fp32 or bf16, not in ",
              compute_);
  const DeepseekWeights weights(config_, std::move(source));
  embedding_ = weights.matrix(kEmbeddingName, compute_);
  for (int64_t i = 0; i < config_.num_layers; ++i) layers_.push_back(load_layer(weights, i));
  final_norm_ = weights.vector(kFinalNormName);
  if (!config_.tie_embeddings) head_ = weights.matrix(kHeadName, compute_);
  for (int64_t i = 0; i < weights.mtp_layers(); ++i) mtp_.push_back(load_mtp_module(weights, config_.num_layers + i));
}

DeepseekModel::Layer DeepseekModel::load_layer(const DeepseekWeights& weights, int64_t index) const {
  return {.input_norm = weights.vector(layer_tensor(index, "input_layernorm.weight")),
          .post_attention_norm = weights.vector(layer_tensor(index, "post_attention_layernorm.weight")),
          .attention = MultiHeadLatentAttention(config_.attention, weights, index, compute_),
          .feed_forward = FeedForward(config_, weights, index, compute_)};
}

DeepseekModel::MtpModule DeepseekModel::load_mtp_module(const DeepseekWeights& weights, int64_t index) const {
  const auto optional = [&](const char* part) -> std::optional<kernels::StoredWeight> {
    const std::string name = layer_tensor(index, part);
    if (!weights.has(name)) return std::nullopt;
    return weights.matrix(name, compute_);
  };
  return {.token_norm = weights.vector(layer_tensor(index, "enorm.weight")),
          .hidden_norm = weights.vector(layer_tensor(index, "hnorm.weight")),
          .final_norm = weights.vector(layer_tensor(index, "shared_head.norm.weight")),
          .projection = weights.matrix(layer_tensor(index, "eh_proj.weight"), compute_),
          .embedding = optional("embed_tokens.weight"),
          .head = optional("shared_head.head.weight"),
          .layer = load_layer(weights, index)};
}

void DeepseekModel::check_batch(const nn::PackedBatch& batch, const nn::KvCache* cache,
                                const nn::CacheSlots* slots) const {
  TORCH_CHECK(batch.tokens.dim() == 1 && batch.tokens.scalar_type() == at::kLong,
              "DeepseekModel: tokens must be int64 [T], are ", batch.tokens.scalar_type(), " ", batch.tokens.sizes());
  TORCH_CHECK(batch.positions.sizes() == batch.tokens.sizes() && batch.positions.scalar_type() == at::kLong,
              "DeepseekModel: positions must be int64 ", batch.tokens.sizes(), ", are ", batch.positions.sizes());
  TORCH_CHECK(batch.sequence_offsets.dim() == 1 && batch.sequence_offsets.scalar_type() == at::kInt,
              "DeepseekModel: sequence_offsets must be int32 [S + 1], are ", batch.sequence_offsets.sizes());
  if (batch.tokens.numel() > 0) {
    const auto [lowest, highest] = batch.tokens.aminmax();
    TORCH_CHECK_INDEX(lowest.item<int64_t>() >= 0 && highest.item<int64_t>() < config_.vocab_size,
                      "DeepseekModel: token ids must lie in [0, ", config_.vocab_size, "), are between ",
                      lowest.item<int64_t>(), " and ", highest.item<int64_t>());
  }
  if (cache == nullptr) return;
  const auto* latent = dynamic_cast<const LatentKvCache*>(cache);
  TORCH_CHECK(latent != nullptr && latent->num_layers() == config_.num_layers + mtp_depth(),
              "DeepseekModel: the cache was made by another model");
  TORCH_CHECK(slots->slots.sizes() == batch.tokens.sizes() && slots->slots.scalar_type() == at::kLong,
              "DeepseekModel: slots must be int64 [", batch.tokens.size(0), "], are ", slots->slots.sizes());
}

AttentionStep DeepseekModel::plan(const nn::PackedBatch& batch, const nn::KvCache* cache,
                                  const nn::CacheSlots* slots) const {
  AttentionStep step = AttentionStep::plan(config_.attention, batch, slots, cache != nullptr ? cache->block_size() : 0);
  const at::Tensor angles = batch.positions.to(at::kFloat).unsqueeze(1) * inverse_frequencies_;
  step.cos = angles.cos().mul_(config_.rotary.attention_factor);
  step.sin = angles.sin().mul_(config_.rotary.attention_factor);
  return step;
}

at::Tensor DeepseekModel::embed(const kernels::StoredWeight& embedding, const at::Tensor& tokens) const {
  if (!embedding.scales.defined()) return embedding.values.index_select(0, tokens).to(compute_);
  const at::Tensor values = embedding.values.view(at::kByte).index_select(0, tokens).view(at::kFloat8_e4m3fn);
  const at::Tensor scales = embedding.scales.index_select(0, at::floor_divide(tokens, kernels::kScaleBlock))
                                .repeat_interleave(kernels::kScaleBlock, 1)
                                .narrow(1, 0, embedding.in());
  return (values.to(at::kFloat) * scales).to(compute_);
}

at::Tensor DeepseekModel::run_layer(const Layer& layer, const at::Tensor& x, const AttentionStep& step,
                                    const at::Tensor& entries, std::vector<kernels::Routing>* routings) const {
  const at::Tensor attended =
      layer.attention.forward(kernels::rms_norm(x, layer.input_norm, config_.norm_eps), x, step, entries);
  const at::Tensor normalised = kernels::rms_norm(attended, layer.post_attention_norm, config_.norm_eps);
  if (routings != nullptr && layer.feed_forward.has_router()) routings->push_back(layer.feed_forward.route(normalised));
  return layer.feed_forward.forward(normalised, attended);
}

at::Tensor DeepseekModel::run(const nn::PackedBatch& batch, nn::KvCache* cache, const nn::CacheSlots* slots,
                              const Extras& extras) const {
  check_batch(batch, cache, slots);
  const at::AutoDispatchBelowADInplaceOrView without_autograd;
  at::Tensor hidden = embed(embedding_, batch.tokens);  // [T, E]
  if (batch.tokens.numel() == 0) return hidden;
  const AttentionStep step = plan(batch, cache, slots);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const auto number = static_cast<int64_t>(i);
    if (extras.tap != nullptr) extras.tap->offer(number, hidden);
    hidden = run_layer(layers_[i], hidden, step, entries_of(cache, number), extras.routings);
  }
  hidden = kernels::rms_norm(hidden, final_norm_, config_.norm_eps);
  if (extras.tap != nullptr) extras.tap->offer(config_.num_layers, hidden);
  return hidden;
}

at::Tensor DeepseekModel::forward(const nn::PackedBatch& batch) {
  return run(batch, nullptr, nullptr, {});
}

at::Tensor DeepseekModel::forward(const nn::PackedBatch& batch, nn::KvCache& cache, const nn::CacheSlots& slots) {
  return run(batch, &cache, &slots, {});
}

at::Tensor DeepseekModel::forward_tapped(const nn::PackedBatch& batch, nn::KvCache* cache, const nn::CacheSlots* slots,
                                         nn::LayerTap& tap) {
  return run(batch, cache, slots, {.tap = &tap});
}

std::vector<kernels::Routing> DeepseekModel::routings(const nn::PackedBatch& batch) {
  std::vector<kernels::Routing> routings;
  run(batch, nullptr, nullptr, {.routings = &routings});
  return routings;
}

at::Tensor DeepseekModel::logits(const at::Tensor& hidden) {
  return kernels::stored_linear(hidden.contiguous(), head(), {}, {}, at::kFloat);
}

at::Tensor DeepseekModel::head_weight() {
  return kernels::dequantise(head()).to(compute_);
}

std::unique_ptr<nn::KvCache> DeepseekModel::make_cache(int64_t blocks, int64_t block_size) const {
  return std::make_unique<LatentKvCache>(LatentKvCache::Shape{.layers = config_.num_layers + mtp_depth(),
                                                              .latent_rank = config_.attention.latent_rank,
                                                              .rope_dim = config_.attention.rope_dim},
                                         blocks, block_size, fp8_cache_ ? at::kFloat8_e4m3fn : compute_);
}

at::Tensor DeepseekModel::mtp_forward(int64_t depth, const nn::PackedBatch& batch, const at::Tensor& hidden,
                                      nn::KvCache* cache, const nn::CacheSlots* slots) {
  check_batch(batch, cache, slots);
  TORCH_CHECK(depth >= 0 && depth < mtp_depth(), "DeepseekModel: there is no prediction module ", depth, ", only ",
              mtp_depth());
  TORCH_CHECK(hidden.dim() == 2 && hidden.size(0) == batch.tokens.size(0) && hidden.size(1) == config_.hidden_size,
              "DeepseekModel: hidden states must be [", batch.tokens.size(0), ", ", config_.hidden_size, "], are ",
              hidden.sizes());
  const at::AutoDispatchBelowADInplaceOrView without_autograd;
  const MtpModule& module = mtp_[static_cast<size_t>(depth)];
  const at::Tensor tokens = embed(module.embedding ? *module.embedding : embedding_, batch.tokens);
  const at::Tensor joined = at::cat({kernels::rms_norm(tokens, module.token_norm, config_.norm_eps),
                                     kernels::rms_norm(hidden, module.hidden_norm, config_.norm_eps)},
                                    1);
  const at::Tensor input = kernels::stored_linear(joined, module.projection, {}, {}, compute_);
  const at::Tensor output =
      run_layer(module.layer, input, plan(batch, cache, slots), entries_of(cache, config_.num_layers + depth));
  return kernels::rms_norm(output, module.final_norm, config_.norm_eps);
}

at::Tensor DeepseekModel::mtp_logits(int64_t depth, const at::Tensor& hidden) {
  const auto& own = mtp_.at(static_cast<size_t>(depth)).head;
  return kernels::stored_linear(hidden.contiguous(), own ? *own : head(), {}, {}, at::kFloat);
}

std::unique_ptr<nn::CausalLM> load_deepseek_model(const data::ModelFiles& files, const nn::ModelOptions& options) {
  auto model = std::make_unique<DeepseekModel>(parse_deepseek_config(files.config(), files.config_location()),
                                               files.weights(), options);
  core::return_freed_memory();  // what matrices took while they were turned around
  return model;
}

}  // namespace distill::teacher
