#include "student/dense_model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/philox.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/attention/varlen_attention.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rotary/rotary.h"
#include "kernels/swiglu/swiglu.h"
#include "nn/linear.h"
#include "nn/paged_kv_cache.h"
#include "nn/recompute.h"
#include "student/dense_weights.h"

// Shapes: T tokens, S sequences, E hidden size, H query heads, K key-value heads, D head dimension, F intermediate
// size.

namespace distill::student {
namespace {

// Where a model's weights come from when it is built.
struct WeightSupply {
  std::function<at::Tensor(const DenseWeight&)> tensor;
  // The same weight in blocks of integers where there are such; may be empty.
  std::function<std::optional<kernels::BlockWeight>(const DenseWeight&)> blocks = {};
};

struct Layer {
  at::Tensor input_norm;           // [E]
  nn::Linear qkv;                  // E -> (H + 2K) D
  at::Tensor q_norm, k_norm;       // [D] or undefined
  nn::Linear output;               // H D -> E
  at::Tensor post_attention_norm;  // [E]
  nn::Linear gate_up;              // E -> 2F
  nn::Linear down;                 // F -> E
  int64_t window = 0;
};

// What all layers of one forward share.
struct Step {
  nn::PackedBatch batch;
  nn::PagedKvCache* cache = nullptr;      // or null
  const nn::CacheSlots* slots = nullptr;  // with the cache
  at::Tensor cos = {}, sin = {};          // [T, D / 2] fp32
};

class DenseModel final : public nn::CausalLM {
 public:
  DenseModel(DenseConfig config, const nn::ModelOptions& options, const WeightSupply& supply);

  const nn::ModelShape& shape() const override { return shape_; }
  at::Tensor forward(const nn::PackedBatch& batch) override { return compute(batch, nullptr, nullptr, nullptr); }
  at::Tensor forward(const nn::PackedBatch& batch, nn::KvCache& cache, const nn::CacheSlots& slots) override {
    return compute(batch, &cache, &slots, nullptr);
  }
  at::Tensor forward_tapped(const nn::PackedBatch& batch, nn::KvCache* cache, const nn::CacheSlots* slots,
                            nn::LayerTap& tap) override {
    return compute(batch, cache, slots, &tap);
  }
  at::Tensor logits(const at::Tensor& hidden) override { return head().forward_fp32(hidden); }
  at::Tensor head_weight() override { return head().weight(); }
  std::unique_ptr<nn::KvCache> make_cache(int64_t blocks, int64_t block_size) const override;
  std::vector<std::pair<std::string, at::Tensor>> parameters() override { return parameters_; }

 private:
  at::Tensor compute(const nn::PackedBatch& batch, nn::KvCache* cache, const nn::CacheSlots* slots,
                     nn::LayerTap* tap) const;
  at::Tensor run(Step step, nn::LayerTap* tap) const;
  at::Tensor attention(const at::Tensor& x, int64_t index, const Step& step) const;
  at::Tensor mlp(const at::Tensor& x, const Layer& layer) const;
  void add_rotations(Step& step) const;
  void check_batch(const nn::PackedBatch& batch) const;
  const nn::Linear& head() const { return untied_head_ ? *untied_head_ : embedding_; }

  DenseConfig config_;
  nn::ModelShape shape_;
  nn::ModelOptions options_;
  at::Tensor inverse_frequencies_;  // [D / 2] fp32
  nn::Linear embedding_;            // as a projection E -> vocab, whose rows are looked up
  std::optional<nn::Linear> untied_head_;
  at::Tensor final_norm_;  // [E]
  std::vector<Layer> layers_;
  std::vector<std::pair<std::string, at::Tensor>> parameters_;
};

DenseModel::DenseModel(DenseConfig config, const nn::ModelOptions& options, const WeightSupply& supply)
    : config_(std::move(config)),
      shape_(config_.shape()),
      options_(options),
      inverse_frequencies_(config_.rotary.inverse_frequencies(config_.head_dim)) {
  if (options.fp8_cache) {
    core::fail_usage("a cache in FP8 is for models with latent attention (DeepSeek), which {} is not",
                     config_.model_type);
  }
  TORCH_CHECK(options.compute == at::kFloat || options.compute == at::kBFloat16,
              "a model computes in fp32 or bf16, not in ", options.compute);
  // Tensors in the order of dense_weights(): the constructor below asks for them in the same order.
  const std::vector<DenseWeight> table = dense_weights(config_);
  auto next = table.begin();
  const auto take = [&] {
    const DenseWeight& weight = *next++;
    at::Tensor tensor = supply.tensor(weight);
    if (options_.trainable) {
      tensor = tensor.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true).requires_grad_();
      parameters_.emplace_back(weight.name, tensor);
    }
    return tensor;
  };
  const bool takes_blocks = supply.blocks && !options_.trainable && options_.compute == at::kBFloat16;
  const auto take_part = [&](bool bias) {
    nn::Linear::Part part;
    if (takes_blocks) part.blocks = supply.blocks(*next);
    if (part.blocks) {
      ++next;
    } else {
      part.weight = take();
    }
    if (bias) part.bias = take();
    return part;
  };
  // Norm weights are fp32 also where the rest is bf16: they are small, and the operators compute in fp32.
  const auto take_norm = [&] { return options_.trainable ? take() : take().to(at::kFloat, false, /*copy=*/true); };

  embedding_ = nn::Linear({take_part(false)}, options_);
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    Layer layer;
    const nn::Linear::Part q = take_part(config_.qkv_bias);
    const nn::Linear::Part k = take_part(config_.qkv_bias);
    const nn::Linear::Part v = take_part(config_.qkv_bias);
    layer.qkv = nn::Linear({q, k, v}, options_);
    layer.output = nn::Linear({take_part(config_.output_bias)}, options_);
    if (config_.qk_norm) {
      layer.q_norm = take_norm();
      layer.k_norm = take_norm();
    }
    const nn::Linear::Part gate = take_part(config_.mlp_bias);
    const nn::Linear::Part up = take_part(config_.mlp_bias);
    layer.gate_up = nn::Linear({gate, up}, options_);
    layer.down = nn::Linear({take_part(config_.mlp_bias)}, options_);
    layer.input_norm = take_norm();
    layer.post_attention_norm = take_norm();
    layer.window = config_.windows[static_cast<size_t>(i)];
    layers_.push_back(std::move(layer));
  }
  final_norm_ = take_norm();
  if (!config_.tie_embeddings) untied_head_ = nn::Linear({take_part(false)}, options_);
  TORCH_CHECK(next == table.end(), "DenseModel: ", table.end() - next, " weights were not used");
}

at::Tensor DenseModel::compute(const nn::PackedBatch& batch, nn::KvCache* cache, const nn::CacheSlots* slots,
                               nn::LayerTap* tap) const {
  check_batch(batch);
  if (cache == nullptr && options_.trainable) return run({.batch = batch}, tap);
  const at::AutoDispatchBelowADInplaceOrView without_autograd;
  if (cache == nullptr) return run({.batch = batch}, tap);
  auto* const paged = dynamic_cast<nn::PagedKvCache*>(cache);
  TORCH_CHECK(paged != nullptr && paged->num_layers() == config_.num_layers,
              "DenseModel: the cache was made by another model");
  TORCH_CHECK(slots->slots.sizes() == batch.tokens.sizes() && slots->slots.scalar_type() == at::kLong,
              "DenseModel: slots must be int64 [", batch.tokens.size(0), "], are ", slots->slots.sizes());
  return run({.batch = batch, .cache = paged, .slots = slots}, tap);
}

std::unique_ptr<nn::KvCache> DenseModel::make_cache(int64_t blocks, int64_t block_size) const {
  return std::make_unique<nn::PagedKvCache>(
      nn::PagedKvCache::Shape{
          .layers = config_.num_layers, .kv_heads = config_.num_kv_heads, .head_dim = config_.head_dim},
      blocks, block_size, options_.compute);
}

void DenseModel::check_batch(const nn::PackedBatch& batch) const {
  TORCH_CHECK(batch.tokens.dim() == 1 && batch.tokens.scalar_type() == at::kLong,
              "DenseModel: tokens must be int64 [T], are ", batch.tokens.scalar_type(), " ", batch.tokens.sizes());
  TORCH_CHECK(batch.positions.sizes() == batch.tokens.sizes() && batch.positions.scalar_type() == at::kLong,
              "DenseModel: positions must be int64 ", batch.tokens.sizes(), ", are ", batch.positions.sizes());
  TORCH_CHECK(batch.sequence_offsets.dim() == 1 && batch.sequence_offsets.scalar_type() == at::kInt,
              "DenseModel: sequence_offsets must be int32 [S + 1], are ", batch.sequence_offsets.sizes());
  if (batch.tokens.numel() == 0) return;
  const auto [lowest, highest] = batch.tokens.aminmax();
  TORCH_CHECK_INDEX(lowest.item<int64_t>() >= 0 && highest.item<int64_t>() < config_.vocab_size,
                    "DenseModel: token ids must lie in [0, ", config_.vocab_size, "), are between ",
                    lowest.item<int64_t>(), " and ", highest.item<int64_t>());
}

void DenseModel::add_rotations(Step& step) const {
  const at::Tensor angles = step.batch.positions.to(at::kFloat).unsqueeze(1) * inverse_frequencies_;
  step.cos = angles.cos();
  step.sin = angles.sin();
  if (config_.rotary.attention_factor == 1) return;
  step.cos.mul_(config_.rotary.attention_factor);
  step.sin.mul_(config_.rotary.attention_factor);
}

at::Tensor DenseModel::run(Step step, nn::LayerTap* tap) const {
  add_rotations(step);
  at::Tensor hidden = embedding_.rows(step.batch.tokens, /*tied=*/!untied_head_);  // [T, E]
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    if (tap != nullptr) tap->offer(i, hidden);
    const auto layer = [this, i, step](const at::Tensor& x) {
      return mlp(attention(x, i, step), layers_[static_cast<size_t>(i)]);
    };
    hidden = options_.recompute ? nn::recompute(layer, hidden) : layer(hidden);
  }
  hidden = kernels::rms_norm(hidden, final_norm_, config_.norm_eps);
  if (tap != nullptr) tap->offer(config_.num_layers, hidden);
  return hidden;
}

at::Tensor DenseModel::attention(const at::Tensor& x, int64_t index, const Step& step) const {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const int64_t tokens = x.size(0);
  const int64_t dim = config_.head_dim;
  const int64_t heads = config_.num_heads;
  const int64_t kv_heads = config_.num_kv_heads;
  const at::Tensor qkv = layer.qkv.forward(kernels::rms_norm(x, layer.input_norm, config_.norm_eps));
  const auto part = [&](int64_t first_head, int64_t count) {  // [T, count, D]
    return qkv.narrow(1, first_head * dim, count * dim).view({tokens, count, dim});
  };
  at::Tensor q = part(0, heads);
  at::Tensor k = part(heads, kv_heads);
  const at::Tensor v = part(heads + kv_heads, kv_heads);
  if (config_.qk_norm) {
    q = kernels::rms_norm(q, layer.q_norm, config_.norm_eps);
    k = kernels::rms_norm(k, layer.k_norm, config_.norm_eps);
  }
  q = kernels::rotary(q, step.cos, step.sin);
  k = kernels::rotary(k, step.cos, step.sin);
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  at::Tensor mixed;  // [T, H, D]
  if (step.cache != nullptr) {
    const kernels::PagedKeysValues& cache = step.cache->layer(index);
    kernels::write_cache(cache, k, v, step.slots->slots);
    mixed = kernels::paged_attention(q, cache,
                                     {.sequence_offsets = step.batch.sequence_offsets,
                                      .block_table = step.slots->block_table,
                                      .context_lengths = step.slots->context_lengths},
                                     scale, layer.window);
  } else {
    mixed = kernels::varlen_attention(q, k, v, step.batch.sequence_offsets, scale, layer.window);
  }
  return layer.output.forward(mixed.reshape({tokens, heads * dim}), x);
}

at::Tensor DenseModel::mlp(const at::Tensor& x, const Layer& layer) const {
  const at::Tensor gate_up = layer.gate_up.forward(kernels::rms_norm(x, layer.post_attention_norm, config_.norm_eps));
  return layer.down.forward(kernels::swiglu(gate_up), x);
}

at::Tensor random_weight(const DenseWeight& weight, const DenseConfig& config, uint64_t seed) {
  if (weight.shape.size() == 1) {
    return weight.name.ends_with(".bias") ? at::zeros(weight.shape, at::kFloat) : at::ones(weight.shape, at::kFloat);
  }
  const at::Tensor tensor = at::empty(weight.shape, at::kFloat);
  const uint64_t stream = core::stream_id(weight.name, 0);
  const int64_t columns = weight.shape[1];
  auto* const data = tensor.mutable_data_ptr<float>();
  at::parallel_for(0, weight.shape[0], 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      core::Philox random(seed, stream, static_cast<uint64_t>(row));
      for (int64_t i = 0; i < columns; ++i) {
        data[row * columns + i] = static_cast<float>(random.next_normal() * config.initializer_range);
      }
    }
  });
  return tensor;
}

}  // namespace

std::unique_ptr<nn::CausalLM> load_dense_model(const data::ModelFiles& files, const nn::ModelOptions& options) {
  const auto weights = files.weights();
  return load_dense_model(parse_dense_config(files.config(), files.config_location()), *weights, options);
}

std::unique_ptr<nn::CausalLM> load_dense_model(const DenseConfig& config, const data::WeightSource& weights,
                                               const nn::ModelOptions& options) {
  const DenseWeightReader reader(config, weights);
  return std::make_unique<DenseModel>(
      config, options,
      WeightSupply{.tensor = [&](const DenseWeight& weight) { return reader.load(weight); },
                   .blocks = [&](const DenseWeight& weight) { return reader.load_blocks(weight); }});
}

std::unique_ptr<nn::CausalLM> make_dense_model(const nlohmann::json& json, const nn::ModelOptions& options,
                                               uint64_t seed) {
  const DenseConfig config = parse_dense_config(json);
  return std::make_unique<DenseModel>(config, options, WeightSupply{.tensor = [&](const DenseWeight& weight) {
                                        return random_weight(weight, config, seed);
                                      }});
}

}  // namespace distill::student
