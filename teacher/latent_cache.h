// The block cache of latent attention: per token and layer one normalised latent and one rotary key, whatever the
// number of heads (DeepSeek-V2 §2.1.2).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "nn/kv_cache.h"

namespace distill::teacher {

class LatentKvCache final : public nn::KvCache {
 public:
  struct Shape {
    int64_t layers = 0;
    int64_t latent_rank = 0;
    int64_t rope_dim = 0;
  };

  // Uninitialised memory, fp32, bf16 or float8_e4m3fn with scales (kernels/mla_attention/fp8_entries.h). Throws Error
  // saying how much was asked for if it cannot be had.
  LatentKvCache(const Shape& shape, int64_t blocks, int64_t block_size, at::ScalarType dtype);

  int64_t num_blocks() const override { return blocks_; }
  int64_t block_size() const override { return block_size_; }
  int64_t bytes_per_token() const override;
  void copy_block(int64_t from, int64_t to) override;

  // [blocks, block_size, latent_rank + rope_dim], in FP8 [blocks, block_size, bytes].
  const at::Tensor& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }
  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }

 private:
  int64_t blocks_;
  int64_t block_size_;
  std::vector<at::Tensor> layers_;
};

}  // namespace distill::teacher
