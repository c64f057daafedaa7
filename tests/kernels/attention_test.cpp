#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "kernels/attention/paged_attention.h"
#include "kernels/attention/varlen_attention.h"
#include "tests/kernels/compare.h"

namespace distill::kernels {
namespace {

// softmax(q k^T scale + mask) v written out, one sequence, [tokens, heads, dim].
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale, int64_t window) {
  const int64_t group = q.size(1) / k.size(1);
  const at::Tensor keys = k.repeat_interleave(group, 1).permute({1, 2, 0});
  const at::Tensor values = v.repeat_interleave(group, 1).transpose(0, 1);
  at::Tensor visible = at::ones({q.size(0), k.size(0)}, at::kBool).tril(k.size(0) - q.size(0));
  if (window > 0) visible = visible.triu(k.size(0) - q.size(0) + 1 - window);
  const at::Tensor scores = at::matmul(q.transpose(0, 1), keys) * scale;
  const at::Tensor masked = scores.masked_fill(visible.logical_not(), -INFINITY);
  return at::matmul(masked.softmax(-1), values).transpose(0, 1);
}

struct Shape {
  int64_t heads, kv_heads, dim, window;
};

class Attention : public testing::TestWithParam<Shape> {
 protected:
  const std::vector<int64_t> lengths_{9, 1, 37};
  const at::Tensor offsets_ = at::tensor({0, 9, 10, 47}, at::kInt);
  const int64_t tokens_ = 47;
  const double scale_ = 0.3;

  at::Tensor reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const {
    std::vector<at::Tensor> parts;
    int64_t begin = 0;
    for (const int64_t length : lengths_) {
      parts.push_back(attend(q.narrow(0, begin, length), k.narrow(0, begin, length), v.narrow(0, begin, length), scale_,
                             GetParam().window));
      begin += length;
    }
    return at::cat(parts);
  }
};

TEST_P(Attention, OfTheLastTokensEqualsThatOfAll) {
  const auto [heads, kv_heads, dim, window] = GetParam();
  const Inputs inputs{random({tokens_, heads, dim}, 1).to(at::kFloat),
                      random({tokens_, kv_heads, dim}, 2).to(at::kFloat),
                      random({tokens_, kv_heads, dim}, 3).to(at::kFloat)};
  const at::Tensor all = varlen_attention(inputs[0], inputs[1], inputs[2], offsets_, scale_, window);
  // The last 2 tokens of the first sequence, none of the second and the last 30 of the third.
  const at::Tensor chosen = at::cat({at::arange(7, 9), at::arange(17, 47)});
  const at::Tensor some = varlen_attention(inputs[0].index_select(0, chosen), inputs[1], inputs[2],
                                           at::tensor({0, 2, 2, 32}, at::kInt), scale_, window, offsets_);
  EXPECT_LT(scaled_error(some, all.index_select(0, chosen)), 1e-6);
}

TEST_P(Attention, OverPackedSequencesEqualsTheFormulaWithItsGradient) {
  const auto [heads, kv_heads, dim, window] = GetParam();
  const Inputs inputs{random({tokens_, heads, dim}, 1), random({tokens_, kv_heads, dim}, 2),
                      random({tokens_, kv_heads, dim}, 3)};
  const auto ours = [&](const Inputs& in) {
    return varlen_attention(in[0], in[1], in[2], offsets_, scale_, GetParam().window);
  };
  const auto formula = [&](const Inputs& in) { return reference(in[0], in[1], in[2]); };
  Inputs fp32;
  for (const auto& input : inputs) fp32.push_back(input.to(at::kFloat));
  EXPECT_LT(scaled_error(ours(fp32), formula(inputs)), 1e-5);
  expect_same_gradients(inputs, random({tokens_, heads, dim}, 4), ours, formula, 1e-3);
}

TEST_P(Attention, OverCacheBlocksEqualsTheFormulaForWholeAndSplitSequences) {
  const auto [heads, kv_heads, dim, window] = GetParam();
  const at::Tensor q = as_bf16(random({tokens_, heads, dim}, 5));
  const at::Tensor k = as_bf16(random({tokens_, kv_heads, dim}, 6));
  const at::Tensor v = as_bf16(random({tokens_, kv_heads, dim}, 7));
  const at::Tensor expected = reference(q, k, v);
  for (const auto& [dtype, tolerance, block] :
       {std::tuple(at::kFloat, 1e-5, 16), std::tuple(at::kBFloat16, 0.02, 16), std::tuple(at::kBFloat16, 0.02, 32)}) {
    const auto options = at::TensorOptions().dtype(dtype);
    const PagedKeysValues cache{.keys = at::full({8, kv_heads, dim, block}, NAN, options),
                                .values = at::full({8, kv_heads, block, dim}, NAN, options)};
    // Sequences 0, 1, 2 lie in blocks 5; 2; 7, 0, 3.
    const at::Tensor table = at::tensor({5, 0, 0, 2, 0, 0, 7, 0, 3}, at::kInt).view({3, 3});
    std::vector<int64_t> slots;
    for (size_t s = 0; s < lengths_.size(); ++s) {
      for (int64_t p = 0; p < lengths_[s]; ++p) {
        slots.push_back(table[static_cast<int64_t>(s)][p / block].item<int32_t>() * block + p % block);
      }
    }
    write_cache(cache, k.to(dtype), v.to(dtype), at::tensor(slots, at::kLong));
    const at::Tensor whole = paged_attention(
        q.to(dtype), cache,
        {.sequence_offsets = offsets_, .block_table = table, .context_lengths = at::tensor({9, 1, 37}, at::kInt)},
        scale_, window);
    EXPECT_LT(scaled_error(whole, expected), tolerance) << dtype;
    // The last token of each sequence alone gives the same bits.
    const at::Tensor last = at::tensor({8, 9, 46}, at::kLong);
    const at::Tensor decoded = paged_attention(q.to(dtype).index_select(0, last), cache,
                                               {.sequence_offsets = at::tensor({0, 1, 2, 3}, at::kInt),
                                                .block_table = table,
                                                .context_lengths = at::tensor({9, 1, 37}, at::kInt)},
                                               scale_, window);
    EXPECT_TRUE(at::equal(decoded, whole.index_select(0, last))) << dtype;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Attention,
                         testing::Values(Shape{4, 4, 16, 0}, Shape{9, 3, 64, 0}, Shape{6, 2, 20, 0},
                                         Shape{4, 2, 16, 5}));

TEST(PagedAttention, DoesNotDependOnHowASequenceIsSplit) {
  constexpr int64_t kTokens = 140;
  constexpr int64_t kBlock = 32;
  constexpr int64_t kBlocks = 5;
  const at::Tensor table = at::tensor({3, 0, 4, 1, 2}, at::kInt).view({1, kBlocks});
  const at::Tensor positions = at::arange(kTokens, at::kLong);
  const at::Tensor slots =
      table[0].index_select(0, positions.floor_divide(kBlock)).to(at::kLong) * kBlock + positions % kBlock;
  for (const int64_t window : {0, 50}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const auto options = at::TensorOptions().dtype(dtype);
      const PagedKeysValues cache{.keys = at::full({kBlocks, 3, 64, kBlock}, NAN, options),
                                  .values = at::full({kBlocks, 3, kBlock, 64}, NAN, options)};
      const at::Tensor q = random({kTokens, 9, 64}, 8).to(dtype);
      const at::Tensor k = random({kTokens, 3, 64}, 9).to(dtype);
      const at::Tensor v = random({kTokens, 3, 64}, 10).to(dtype);
      const auto feed = [&](int64_t begin, int64_t end) {
        write_cache(cache, k.slice(0, begin, end), v.slice(0, begin, end), slots.slice(0, begin, end));
        return paged_attention(q.slice(0, begin, end), cache,
                               {.sequence_offsets = at::tensor({int64_t{0}, end - begin}, at::kInt),
                                .block_table = table,
                                .context_lengths = at::tensor({end}, at::kInt)},
                               0.125, window);
      };
      const at::Tensor split = at::cat({feed(0, 1), feed(1, 60), feed(60, 61), feed(61, 128), feed(128, 140)});
      const at::Tensor whole = feed(0, kTokens);
      EXPECT_TRUE(at::equal(split, whole)) << dtype << " window " << window;
      const auto fp64 = [](const at::Tensor& x) { return x.to(at::kDouble); };
      const at::Tensor expected = attend(fp64(q), fp64(k), fp64(v), 0.125, window);
      // Of tokens that see many others, whose results are of one size.
      EXPECT_LT(scaled_error(whole.slice(0, 100), expected.slice(0, 100)), dtype == at::kFloat ? 1e-5 : 0.02)
          << dtype << " window " << window;
    }
  }
}

TEST(PagedAttention, RefusesSlotsOutsideTheCache) {
  const PagedKeysValues cache{.keys = at::zeros({2, 1, 4, 16}), .values = at::zeros({2, 1, 16, 4})};
  EXPECT_THROW(write_cache(cache, at::zeros({1, 1, 4}), at::zeros({1, 1, 4}), at::tensor({32}, at::kLong)), c10::Error);
}

}  // namespace
}  // namespace distill::kernels
