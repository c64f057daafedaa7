#include "nn/causal_lm.h"

#include <ATen/core/Tensor.h>

#include "core/error.h"

namespace distill::nn {

at::Tensor CausalLM::forward_tapped(const PackedBatch& batch, KvCache* cache, const CacheSlots* slots, LayerTap& tap) {
  for (const int64_t layer : tap.layers) {
    core::check(layer == shape().num_layers, "this model does not show the hidden states of layer {}, only of its last",
                layer);
  }
  const at::Tensor hidden = cache != nullptr ? forward(batch, *cache, *slots) : forward(batch);
  tap.offer(shape().num_layers, hidden);
  return hidden;
}

}  // namespace distill::nn
