#include "teacher/latent_cache.h"

#include <ATen/ATen.h>

#include "core/error.h"
#include "kernels/mla_attention/fp8_entries.h"

namespace distill::teacher {

LatentKvCache::LatentKvCache(const Shape& shape, int64_t blocks, int64_t block_size, at::ScalarType dtype)
    : blocks_(blocks), block_size_(block_size) {
  core::check(blocks > 0 && block_size > 0, "a cache needs blocks and tokens in them, not {} blocks of {} tokens",
              blocks, block_size);
  core::with_context(fmt::format("while reserving a cache of {} tokens", blocks * block_size), [&] {
    const bool fp8 = dtype == at::kFloat8_e4m3fn;
    const int64_t size =
        fp8 ? kernels::Fp8Entry{shape.latent_rank, shape.rope_dim}.bytes() : shape.latent_rank + shape.rope_dim;
    const auto options = at::TensorOptions().dtype(fp8 ? at::kByte : dtype);
    for (int64_t i = 0; i < shape.layers; ++i) layers_.push_back(at::empty({blocks, block_size, size}, options));
  });
}

int64_t LatentKvCache::bytes_per_token() const {
  int64_t bytes = 0;
  for (const at::Tensor& layer : layers_) bytes += static_cast<int64_t>(layer.nbytes());
  return bytes / (blocks_ * block_size_);
}

void LatentKvCache::copy_block(int64_t from, int64_t to) {
  TORCH_CHECK_INDEX(from >= 0 && from < blocks_ && to >= 0 && to < blocks_, "copy_block: ", from, " to ", to, " of ",
                    blocks_, " blocks");
  for (const at::Tensor& layer : layers_) layer.select(0, to).copy_(layer.select(0, from));
}

}  // namespace distill::teacher
