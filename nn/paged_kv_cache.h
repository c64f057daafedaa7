// The block cache of models with ordinary (grouped) attention: keys and values of every layer.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "kernels/attention/paged_attention.h"
#include "nn/kv_cache.h"

namespace distill::nn {

class PagedKvCache final : public KvCache {
 public:
  struct Shape {
    int64_t layers = 0;
    int64_t kv_heads = 0;
    int64_t head_dim = 0;
  };

  // Uninitialised memory, fp32 or bf16. Throws Error saying how much was asked for if it cannot be had.
  PagedKvCache(const Shape& shape, int64_t blocks, int64_t block_size, at::ScalarType dtype);

  int64_t num_blocks() const override { return blocks_; }
  int64_t block_size() const override { return block_size_; }
  int64_t bytes_per_token() const override;
  void copy_block(int64_t from, int64_t to) override;

  const kernels::PagedKeysValues& layer(int64_t index) const { return layers_[static_cast<size_t>(index)]; }
  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }

 private:
  int64_t blocks_;
  int64_t block_size_;
  std::vector<kernels::PagedKeysValues> layers_;
};

}  // namespace distill::nn
