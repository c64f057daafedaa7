#include "nn/paged_kv_cache.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace distill::nn {
namespace {

constexpr PagedKvCache::Shape kShape{.layers = 2, .kv_heads = 3, .head_dim = 8};

TEST(PagedKvCache, CountsTheBytesOfATokenOverAllLayers) {
  const PagedKvCache cache(kShape, 4, 16, at::kBFloat16);
  EXPECT_EQ(cache.num_blocks(), 4);
  EXPECT_EQ(cache.block_size(), 16);
  EXPECT_EQ(cache.bytes_per_token(), 2 /*layers*/ * 2 /*k, v*/ * 3 * 8 * 2 /*bytes*/);
}

TEST(PagedKvCache, CopiesABlockInEveryLayer) {
  PagedKvCache cache(kShape, 4, 16, at::kFloat);
  for (int64_t i = 0; i < 2; ++i) {
    cache.layer(i).keys.copy_(at::rand_like(cache.layer(i).keys));
    cache.layer(i).values.copy_(at::rand_like(cache.layer(i).values));
  }
  const at::Tensor untouched = cache.layer(1).keys[2].clone();
  cache.copy_block(3, 1);
  for (int64_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(at::equal(cache.layer(i).keys[1], cache.layer(i).keys[3]));
    EXPECT_TRUE(at::equal(cache.layer(i).values[1], cache.layer(i).values[3]));
  }
  EXPECT_TRUE(at::equal(cache.layer(1).keys[2], untouched));
}

TEST(PagedKvCache, RefusesBlocksItDoesNotHave) {
  PagedKvCache cache(kShape, 4, 16, at::kFloat);
  EXPECT_THROW(cache.copy_block(0, 4), c10::Error);
  EXPECT_THROW(cache.copy_block(-1, 0), c10::Error);
  EXPECT_THROW(PagedKvCache(kShape, 0, 16, at::kFloat), core::Error);
  EXPECT_THROW(PagedKvCache(kShape, int64_t{1} << 40, 1 << 10, at::kFloat), core::Error);
}

}  // namespace
}  // namespace distill::nn
