#include "nn/paged_kv_cache.h"

#include <ATen/ATen.h>

#include "core/error.h"

namespace distill::nn {

PagedKvCache::PagedKvCache(const Shape& shape, int64_t blocks, int64_t block_size, at::ScalarType dtype)
    : blocks_(blocks), block_size_(block_size) {
  core::check(blocks > 0 && block_size > 0, "a cache needs blocks and tokens in them, not {} blocks of {} tokens",
              blocks, block_size);
  const auto options = at::TensorOptions().dtype(dtype);
  core::with_context(fmt::format("while reserving a cache of {} tokens", blocks * block_size), [&] {
    for (int64_t i = 0; i < shape.layers; ++i) {
      layers_.push_back({.keys = at::empty({blocks, shape.kv_heads, shape.head_dim, block_size}, options),
                         .values = at::empty({blocks, shape.kv_heads, block_size, shape.head_dim}, options)});
    }
  });
}

int64_t PagedKvCache::bytes_per_token() const {
  int64_t bytes = 0;
  for (const auto& layer : layers_) bytes += static_cast<int64_t>(layer.keys.nbytes() + layer.values.nbytes());
  return bytes / (blocks_ * block_size_);
}

void PagedKvCache::copy_block(int64_t from, int64_t to) {
  TORCH_CHECK_INDEX(from >= 0 && from < blocks_ && to >= 0 && to < blocks_, "copy_block: ", from, " to ", to, " of ",
                    blocks_, " blocks");
  for (const auto& layer : layers_) {
    layer.keys.select(0, to).copy_(layer.keys.select(0, from));
    layer.values.select(0, to).copy_(layer.values.select(0, from));
  }
}

}  // namespace distill::nn
