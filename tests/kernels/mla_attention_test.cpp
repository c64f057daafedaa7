#include "kernels/mla_attention/mla_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/mla_attention/reference.h"
#include "tests/kernels/compare.h"

namespace distill::kernels {
namespace {

struct Shape {
  int64_t heads, rank, rope, block_size;
};

// Three sequences of 9, 1 and 37 cached tokens, the last 4, 1 and 37 of them new, in scattered blocks.
class MlaAttentionShapes : public testing::TestWithParam<Shape> {
 protected:
  const std::vector<int64_t> contexts_{9, 1, 37};
  const std::vector<int64_t> new_tokens_{4, 1, 37};
  const double scale_ = 0.2;
};

TEST_P(MlaAttentionShapes, OverCacheBlocksEqualsTheFormula) {
  const auto [heads, rank, rope, block_size] = GetParam();
  const int64_t dim = rank + rope;
  const int64_t most_blocks = (37 + block_size - 1) / block_size;
  const at::Tensor table = at::arange(3 * most_blocks, 0, -1, at::kInt).view({3, most_blocks});
  const at::Tensor q = as_bf16(random({42, heads, dim}, 1));
  for (const auto& [dtype, tolerance] : {std::pair(at::kFloat, 1e-5), std::pair(at::kBFloat16, 0.03)}) {
    const at::Tensor entries = at::full({3 * most_blocks + 1, block_size, dim}, NAN, at::TensorOptions().dtype(dtype));
    std::vector<at::Tensor> expected;
    int64_t first = 0;
    for (int64_t s = 0; s < 3; ++s) {
      const int64_t length = contexts_[static_cast<size_t>(s)];
      const int64_t fresh = new_tokens_[static_cast<size_t>(s)];
      const at::Tensor cached = as_bf16(random({length, dim}, static_cast<uint64_t>(s + 2)));
      std::vector<int64_t> slots;
      for (int64_t p = 0; p < length; ++p) {
        slots.push_back(table[s][p / block_size].item<int32_t>() * block_size + p % block_size);
      }
      write_latents(entries, cached.narrow(1, 0, rank).to(dtype), cached.narrow(1, rank, rope).to(dtype),
                    at::tensor(slots, at::kLong));
      expected.push_back(reference::mla_attention(q.narrow(0, first, fresh), cached, rank, scale_));
      first += fresh;
    }
    const at::Tensor whole = mla_attention(q.to(dtype), entries,
                                           {.sequence_offsets = at::tensor({0, 4, 5, 42}, at::kInt),
                                            .block_table = table,
                                            .context_lengths = at::tensor({9, 1, 37}, at::kInt)},
                                           rank, scale_);
    EXPECT_LT(scaled_error(whole, at::cat(expected)), tolerance) << dtype;
    // The last token of each sequence alone gives the same bits.
    const at::Tensor last = at::tensor({3, 4, 41}, at::kLong);
    const at::Tensor decoded = mla_attention(q.to(dtype).index_select(0, last), entries,
                                             {.sequence_offsets = at::tensor({0, 1, 2, 3}, at::kInt),
                                              .block_table = table,
                                              .context_lengths = at::tensor({9, 1, 37}, at::kInt)},
                                             rank, scale_);
    EXPECT_TRUE(at::equal(decoded, whole.index_select(0, last))) << dtype;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, MlaAttentionShapes,
                         testing::Values(Shape{16, 64, 16, 16}, Shape{5, 70, 6, 4}, Shape{9, 192, 64, 32},
                                         Shape{1, 10, 2, 1}));

TEST(MlaAttention, RefusesSlotsAndBlocksOutsideTheCache) {
  const at::Tensor entries = at::zeros({2, 4, 6});
  EXPECT_THROW(write_latents(entries, at::zeros({1, 4}), at::zeros({1, 2}), at::tensor({8}, at::kLong)), c10::Error);
  const auto attend = [&](int block, int context) {
    return mla_attention(at::zeros({1, 1, 6}), entries,
                         {.sequence_offsets = at::tensor({0, 1}, at::kInt),
                          .block_table = at::full({1, 1}, block, at::kInt),
                          .context_lengths = at::tensor({context}, at::kInt)},
                         4, 1.0);
  };
  EXPECT_NO_THROW(attend(1, 4));
  EXPECT_THROW(attend(2, 4), c10::Error);
  EXPECT_THROW(attend(1, 5), c10::Error);
}

}  // namespace
}  // namespace distill::kernels
