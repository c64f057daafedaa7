// Decoders of the DeepSeek kind: latent attention and mixtures of experts, with weights used as the checkpoint stores
// them (fp32, bf16 or block-scaled FP8) straight from the mapped files.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/model_files.h"
#include "data/weight_source.h"
#include "nn/causal_lm.h"
#include "nn/drafter.h"
#include "nn/model_options.h"
#include "teacher/deepseek_config.h"
#include "teacher/deepseek_weights.h"
#include "teacher/feed_forward.h"
#include "teacher/mla.h"

namespace distill::teacher {

// E hidden size, T tokens.
class DeepseekModel final : public nn::CausalLM, public nn::Drafter {
 public:
  // Throws Error naming the tensor if the weights do not fill the model exactly (see DeepseekWeights), or if
  // `options.trainable`: these models only run.
  DeepseekModel(DeepseekConfig config, std::shared_ptr<const data::WeightSource> source,
                const nn::ModelOptions& options);

  const DeepseekConfig& config() const { return config_; }
  const nn::ModelShape& shape() const override { return shape_; }
  at::Tensor forward(const nn::PackedBatch& batch) override;
  at::Tensor forward(const nn::PackedBatch& batch, nn::KvCache& cache, const nn::CacheSlots& slots) override;
  at::Tensor forward_tapped(const nn::PackedBatch& batch, nn::KvCache* cache, const nn::CacheSlots* slots,
                            nn::LayerTap& tap) override;
  at::Tensor logits(const at::Tensor& hidden) override;
  at::Tensor head_weight() override;
  // A LatentKvCache, with layers for the multi-token-prediction modules too.
  std::unique_ptr<nn::KvCache> make_cache(int64_t blocks, int64_t block_size) const override;
  std::vector<std::pair<std::string, at::Tensor>> parameters() override { return {}; }

  // Multi-token prediction (DeepSeek-V3 §2.2): how many modules the checkpoint has.
  int64_t mtp_depth() const { return static_cast<int64_t>(mtp_.size()); }
  // Hidden states of module `depth`, from which `mtp_logits` predicts one token more than its input does. Row t of
  // `batch` is the token that follows position t; `hidden` [T, E] is what the model (or the module before) returned for
  // position t. The module keeps a cache of its own in `cache`, or none.
  at::Tensor mtp_forward(int64_t depth, const nn::PackedBatch& batch, const at::Tensor& hidden, nn::KvCache* cache,
                         const nn::CacheSlots* slots);
  at::Tensor mtp_logits(int64_t depth, const at::Tensor& hidden);

  // Drafts with the first module, applied again to its own output where more than one token is wanted.
  nn::Drafter* drafter() override { return mtp_.empty() ? nullptr : this; }
  at::Tensor draft_forward(const nn::PackedBatch& batch, const at::Tensor& hidden, nn::KvCache& cache,
                           const nn::CacheSlots& slots) override {
    return mtp_forward(0, batch, hidden, &cache, &slots);
  }
  at::Tensor draft_logits(const at::Tensor& hidden) override { return mtp_logits(0, hidden); }

  // The experts chosen in each layer for the tokens of `batch`, each sequence alone: [layers with experts] of
  // [T, experts per token]. For tests and statistics.
  std::vector<kernels::Routing> routings(const nn::PackedBatch& batch);

 private:
  struct Layer {
    at::Tensor input_norm, post_attention_norm;  // [E] fp32
    MultiHeadLatentAttention attention;
    FeedForward feed_forward;
  };
  struct MtpModule {
    at::Tensor token_norm, hidden_norm, final_norm;        // [E] fp32
    kernels::StoredWeight projection;                      // [E, 2E]
    std::optional<kernels::StoredWeight> embedding, head;  // where the checkpoint has its own
    Layer layer;
  };

  Layer load_layer(const DeepseekWeights& weights, int64_t index) const;
  MtpModule load_mtp_module(const DeepseekWeights& weights, int64_t index) const;
  void check_batch(const nn::PackedBatch& batch, const nn::KvCache* cache, const nn::CacheSlots* slots) const;
  AttentionStep plan(const nn::PackedBatch& batch, const nn::KvCache* cache, const nn::CacheSlots* slots) const;
  at::Tensor embed(const kernels::StoredWeight& embedding, const at::Tensor& tokens) const;
  at::Tensor run_layer(const Layer& layer, const at::Tensor& x, const AttentionStep& step, const at::Tensor& entries,
                       std::vector<kernels::Routing>* routings = nullptr) const;
  // What a forward gives besides its result, where wanted.
  struct Extras {
    nn::LayerTap* tap = nullptr;
    std::vector<kernels::Routing>* routings = nullptr;
  };
  at::Tensor run(const nn::PackedBatch& batch, nn::KvCache* cache, const nn::CacheSlots* slots,
                 const Extras& extras) const;
  const kernels::StoredWeight& head() const { return head_ ? *head_ : embedding_; }

  DeepseekConfig config_;
  nn::ModelShape shape_;
  at::ScalarType compute_;
  bool fp8_cache_;
  at::Tensor inverse_frequencies_;  // [rope_dim / 2] fp32
  kernels::StoredWeight embedding_;
  std::optional<kernels::StoredWeight> head_;
  at::Tensor final_norm_;
  std::vector<Layer> layers_;
  std::vector<MtpModule> mtp_;
};

// Throws Error naming file and key or tensor if the model is not one of these, damaged, or needs what this code lacks.
std::unique_ptr<nn::CausalLM> load_deepseek_model(const data::ModelFiles& files, const nn::ModelOptions& options);

}  // namespace distill::teacher
