// What every model is to the trainer and the generation engine: a map from a packed batch of tokens to hidden states.
// Whoever needs logits applies the head, so that a fused loss never builds them. There is no padding anywhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nn/kv_cache.h"

namespace distill::nn {

// Several sequences back to back.
struct PackedBatch {
  at::Tensor tokens;            // [tokens] int64
  at::Tensor positions;         // [tokens] int64, position of each token in its own sequence
  at::Tensor sequence_offsets;  // [sequences + 1] int32: sequence s is tokens[offsets[s], offsets[s + 1])

  // One batch from token lists, each starting at position 0.
  static PackedBatch from_sequences(const std::vector<std::vector<int32_t>>& sequences);
};

// Where a batch's keys and values lie in a block cache, for models run with a cache. Sequence s owns the cache blocks
// block_table[s]; its new tokens are the last ones of its context.
struct CacheSlots {
  at::Tensor slots;            // [tokens] int64: block * block_size + offset at which each token's entry is written
  at::Tensor block_table;      // [sequences, max_blocks] int32
  at::Tensor context_lengths;  // [sequences] int32, cached tokens plus the new ones of this batch
};

struct ModelShape {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t max_positions = 0;
};

class Drafter;

// What a forward hands out on its way. Layers are numbered as transformers numbers `hidden_states`: 0 is the embedding,
// i what layer i gives, and the last one, shape().num_layers, what forward() returns.
struct LayerTap {
  std::vector<int64_t> layers;
  std::vector<at::Tensor> states{};  // [tokens, hidden] of each, filled in by the forward

  // For models: keeps `hidden` where this layer is wanted.
  void offer(int64_t layer, const at::Tensor& hidden) {
    states.resize(layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
      if (layers[i] == layer) states[i] = hidden;
    }
  }
};

class CausalLM {
 public:
  virtual ~CausalLM() = default;

  virtual const ModelShape& shape() const = 0;

  // Hidden states [tokens, hidden] after the final norm, in the compute dtype. Without a cache each sequence attends to
  // itself alone (causally) and the result is differentiable. With one, new entries are written at `slots` and each
  // sequence attends to its whole context.
  virtual at::Tensor forward(const PackedBatch& batch) = 0;
  virtual at::Tensor forward(const PackedBatch& batch, KvCache& cache, const CacheSlots& slots) = 0;

  // The same, which fills `tap` too; a cache comes with slots. Throws Error if the model does not show a layer: all do
  // show the last one.
  virtual at::Tensor forward_tapped(const PackedBatch& batch, KvCache* cache, const CacheSlots* slots, LayerTap& tap);

  // Logits [tokens, vocab] fp32 of hidden states [tokens, hidden].
  virtual at::Tensor logits(const at::Tensor& hidden) = 0;

  // The head's matrix [vocab, hidden] (the embedding where they are tied), for fused losses.
  virtual at::Tensor head_weight() = 0;

  // A cache this model can run with: `blocks` blocks of `block_size` tokens.
  virtual std::unique_ptr<KvCache> make_cache(int64_t blocks, int64_t block_size) const = 0;

  // What guesses this model's next tokens from its hidden states, part of the model; null if it has nothing of the
  // kind.
  virtual Drafter* drafter() { return nullptr; }

  // Trainable tensors by their Hugging Face names, in a fixed order. Tied tensors appear once.
  virtual std::vector<std::pair<std::string, at::Tensor>> parameters() = 0;
};

}  // namespace distill::nn
