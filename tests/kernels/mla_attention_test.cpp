#include "kernels/mla_attention/mla_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/mla_attention/fp8_entries.h"
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

// The same contexts with entries in FP8: attention equals the formula over what the cache says it holds.
TEST_P(MlaAttentionShapes, OverFp8EntriesEqualsTheFormula) {
  const auto [heads, rank, rope, block_size] = GetParam();
  const int64_t blocks = (37 + block_size - 1) / block_size;
  const at::Tensor table = at::arange(blocks, 0, -1, at::kInt).view({1, blocks});
  const at::Tensor slots = (table[0].to(at::kLong).unsqueeze(1) * block_size + at::arange(block_size)).flatten();
  const at::Tensor written = slots.narrow(0, 0, 37).contiguous();
  const at::Tensor q = as_bf16(random({37, heads, rank + rope}, 1));
  const at::Tensor cached = as_bf16(random({37, rank + rope}, 2));
  for (const auto& [dtype, tolerance] : {std::pair(at::kFloat, 1e-5), std::pair(at::kBFloat16, 0.03)}) {
    const at::Tensor entries = at::full({blocks + 1, block_size, Fp8Entry{rank, rope}.bytes()}, 0xFF, at::kByte);
    write_latents(entries, cached.narrow(1, 0, rank).to(dtype), cached.narrow(1, rank, rope).to(dtype), written);
    const at::Tensor held = read_fp8_latents(entries, written, rank, rope, dtype);
    const at::Tensor result = mla_attention(q.to(dtype), entries,
                                            {.sequence_offsets = at::tensor({0, 37}, at::kInt),
                                             .block_table = table,
                                             .context_lengths = at::tensor({37}, at::kInt)},
                                            rank, scale_);
    EXPECT_LT(scaled_error(result, reference::mla_attention(q, held.to(at::kDouble), rank, scale_)), tolerance)
        << dtype;
  }
}

// e4m3 has 3 bits behind the first and steps of 2^-9 below its normal values, whose largest is 448.
TEST(Fp8Entries, RoundEachBlockOfALatentToItsLargestValue) {
  constexpr int64_t kRank = 300;
  at::Tensor latent = at::cat({random({2, 128}, 3), 1e-4 * random({2, 128}, 4), at::zeros({2, 44})}, 1).to(at::kFloat);
  const at::Tensor key = as_bf16(random({2, 6}, 5)).to(at::kFloat);
  const at::Tensor entries = at::zeros({1, 2, Fp8Entry{kRank, 6}.bytes()}, at::kByte);
  const at::Tensor slots = at::tensor({1, 0}, at::kLong);
  write_latents(entries, latent, key, slots);
  const at::Tensor held = read_fp8_latents(entries, slots, kRank, 6, at::kFloat);
  EXPECT_TRUE(at::equal(held.narrow(1, kRank, 6), key));
  for (const int64_t first : {0, 128, 256}) {
    const int64_t size = std::min<int64_t>(128, kRank - first);
    const at::Tensor block = latent.narrow(1, first, size);
    const at::Tensor largest = block.abs().amax(1, /*keepdim=*/true);
    const at::Tensor bound = at::maximum(block.abs() / 16, largest / 448 / 1024) * 1.0001;
    EXPECT_TRUE((held.narrow(1, first, size) - block).abs().le(bound).all().item<bool>()) << first;
  }
}

TEST(Fp8Entries, OfV3TakeAboutHalfOfBf16) {
  EXPECT_EQ((Fp8Entry{512, 64}.bytes()), 656);
}

TEST(MlaAttention, RefusesEntriesOfAnotherLayout) {
  const at::Tensor slots = at::tensor({0}, at::kLong);
  EXPECT_THROW(write_latents(at::zeros({1, 4, 6}, at::kByte), at::zeros({1, 4}), at::zeros({1, 2}), slots), c10::Error);
  EXPECT_THROW(write_latents(at::zeros({1, 4, 6}), at::zeros({1, 4}), at::zeros({1, 3}), slots), c10::Error);
  EXPECT_THROW(read_fp8_latents(at::zeros({1, 4, 6}), slots, 4, 2, at::kFloat), c10::Error);
}

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
