#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <vector>

#include "kernels/attention/paged_attention.h"
#include "kernels/attention/paged_attention_kernels.cuh"
#include "tests/kernels/compare.h"
#include "tests/simt/launch.h"

namespace distill::kernels::cuda {
namespace {

constexpr int64_t kBlockSize = 16;
constexpr double kScale = 0.3;

struct Shape {
  int64_t heads, kv_heads, dim, value_dim, window;
};
const std::vector<Shape> kShapes{{4, 4, 16, 16, 0},  {3, 1, 64, 64, 0}, {2, 2, 20, 36, 0},
                                 {2, 1, 16, 200, 0}, {4, 2, 16, 16, 5}, {2, 1, 16, 16, 140}};

// Three sequences of 9, 1 and 150 tokens (the last longer than a tile) in blocks scattered over a cache.
template <typename T>
class BlockCacheKernel : public testing::Test {
 protected:
  static constexpr double kTolerance = sizeof(T) == sizeof(float) ? 1e-3 : kBf16Rounding;
  const std::vector<int64_t> lengths_{9, 1, 150};
  const int64_t tokens_ = 160;
  const at::Tensor table_ = [] {
    const at::Tensor table = at::zeros({3, 10}, at::kInt);
    table[0][0] = 5;
    table[1][0] = 11;
    for (int64_t b = 0; b < 10; ++b) table[2][b] = b < 5 ? 4 - b : 1 + b;
    return table;
  }();

  at::Tensor slots() const {
    std::vector<int64_t> slots;
    for (size_t s = 0; s < lengths_.size(); ++s) {
      for (int64_t p = 0; p < lengths_[s]; ++p) {
        const auto block = table_[static_cast<int64_t>(s)][p / kBlockSize].template item<int32_t>();
        slots.push_back(block * kBlockSize + p % kBlockSize);
      }
    }
    return at::tensor(slots, at::kLong);
  }

  static PagedKeysValues empty_cache(const Shape& shape) {
    const auto options = at::TensorOptions().dtype(scalar_type_of<T>());
    return {.keys = at::full({12, shape.kv_heads, shape.dim, kBlockSize}, NAN, options),
            .values = at::full({12, shape.kv_heads, kBlockSize, shape.value_dim}, NAN, options)};
  }

  static WriteCacheArguments<T> write_arguments(const PagedKeysValues& cache, const at::Tensor& k, const at::Tensor& v,
                                                const at::Tensor& slots) {
    return {.keys = data<T>(cache.keys),
            .values = data<T>(cache.values),
            .k = data<T>(k),
            .v = data<T>(v),
            .slots = data<int64_t>(slots),
            .tokens = slots.size(0),
            .blocks = cache.keys.size(0),
            .kv_heads = k.size(1),
            .dim = k.size(2),
            .value_dim = v.size(2),
            .block_size = kBlockSize,
            .k_stride = k.stride(0),
            .v_stride = v.stride(0)};
  }

  at::Tensor attend(const at::Tensor& q, const PagedKeysValues& cache, const at::Tensor& offsets,
                    int64_t window) const {
    const at::Tensor lengths = at::tensor(lengths_, at::kInt);
    const at::Tensor out = at::empty({q.size(0), q.size(1), cache.values.size(3)}, q.options());
    const PagedAttentionArguments<T> arguments{.q = data<T>(q),
                                               .keys = data<T>(cache.keys),
                                               .values = data<T>(cache.values),
                                               .sequence_offsets = data<int32_t>(offsets),
                                               .block_table = data<int32_t>(table_),
                                               .context_lengths = data<int32_t>(lengths),
                                               .out = data<T>(out),
                                               .tokens = q.size(0),
                                               .heads = q.size(1),
                                               .kv_heads = cache.keys.size(1),
                                               .dim = q.size(2),
                                               .value_dim = cache.values.size(3),
                                               .block_size = kBlockSize,
                                               .sequences = 3,
                                               .max_blocks = table_.size(1),
                                               .window = window,
                                               .scale = static_cast<float>(kScale)};
    launch(paged_attention_shape(arguments), paged_attention_kernel<T>, arguments, {out});
    return out;
  }
};
TYPED_TEST_SUITE(BlockCacheKernel, BothTypes);

// softmax(q k^T scale + mask) v of one sequence, written out.
at::Tensor formula(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window) {
  const int64_t group = q.size(1) / k.size(1);
  const at::Tensor keys = k.repeat_interleave(group, 1).permute({1, 2, 0});
  const at::Tensor values = v.repeat_interleave(group, 1).transpose(0, 1);
  at::Tensor visible = at::ones({q.size(0), k.size(0)}, at::kBool).tril();
  if (window > 0) visible = visible.triu(1 - window);
  const at::Tensor scores = at::matmul(q.transpose(0, 1), keys) * kScale;
  return at::matmul(scores.masked_fill(visible.logical_not(), -INFINITY).softmax(-1), values).transpose(0, 1);
}

TYPED_TEST(BlockCacheKernel, IsWrittenAsOnTheCpu) {
  using T = TypeParam;
  for (const Shape& shape : kShapes) {
    // k and v are slices of one projection.
    const int64_t width = shape.kv_heads * (shape.dim + shape.value_dim);
    const at::Tensor projection = random({this->tokens_, width}, 1).to(scalar_type_of<T>());
    const at::Tensor k = projection.narrow(1, 0, shape.kv_heads * shape.dim).unflatten(1, {shape.kv_heads, shape.dim});
    const at::Tensor v = projection.narrow(1, shape.kv_heads * shape.dim, shape.kv_heads * shape.value_dim)
                             .unflatten(1, {shape.kv_heads, shape.value_dim});
    const PagedKeysValues cache = this->empty_cache(shape);
    const PagedKeysValues expected = this->empty_cache(shape);
    const at::Tensor slots = this->slots();
    const auto arguments = this->write_arguments(cache, k, v, slots);
    launch(write_cache_shape(arguments), write_cache_kernel<T>, arguments, {cache.keys, cache.values});
    write_cache(expected, k, v, slots);
    EXPECT_TRUE(at::allclose(cache.keys, expected.keys, 0, 0, /*equal_nan=*/true));
    EXPECT_TRUE(at::allclose(cache.values, expected.values, 0, 0, /*equal_nan=*/true));
  }
}

TYPED_TEST(BlockCacheKernel, TrapsOnASlotOutsideTheCache) {
  using T = TypeParam;
  const Shape shape{1, 1, 4, 4, 0};
  const PagedKeysValues cache = this->empty_cache(shape);
  const at::Tensor k = at::zeros({1, 1, 4}, scalar_type_of<T>());
  for (const int64_t slot : {int64_t{-1}, 12 * kBlockSize}) {
    const at::Tensor slots = at::tensor({slot}, at::kLong);
    const auto arguments = this->write_arguments(cache, k, k, slots);
    EXPECT_THROW(simt::run(1, 32, 0, simt::Order::kAscending, [&] { write_cache_kernel<T>(arguments); }),
                 std::runtime_error);
  }
}

// All of the first two sequences is new, and the last 12 tokens of the third.
TYPED_TEST(BlockCacheKernel, AttentionEqualsTheFormulaForWholeAndSplitSequences) {
  using T = TypeParam;
  for (const Shape& shape : kShapes) {
    const Rounded<T> q(random({this->tokens_, shape.heads, shape.dim}, 2));
    const Rounded<T> k(random({this->tokens_, shape.kv_heads, shape.dim}, 3));
    const Rounded<T> v(random({this->tokens_, shape.kv_heads, shape.value_dim}, 4));
    const PagedKeysValues cache = this->empty_cache(shape);
    write_cache(cache, k.stored, v.stored, this->slots());
    const at::Tensor fresh = at::cat({at::arange(0, 10), at::arange(148, 160)});
    const at::Tensor whole =
        this->attend(q.stored.index_select(0, fresh), cache, at::tensor({0, 9, 10, 22}, at::kInt), shape.window);
    std::vector<at::Tensor> expected;
    int64_t begin = 0;
    for (const int64_t length : this->lengths_) {
      expected.push_back(formula(q.exact.narrow(0, begin, length), k.exact.narrow(0, begin, length),
                                 v.exact.narrow(0, begin, length), shape.window));
      begin += length;
    }
    EXPECT_LT(relative_error(whole, at::cat(expected).index_select(0, fresh)), this->kTolerance);
    // The last token of each sequence alone gives the same bits.
    const at::Tensor decoded = this->attend(q.stored.index_select(0, at::tensor({8, 9, 159}, at::kLong)), cache,
                                            at::tensor({0, 1, 2, 3}, at::kInt), shape.window);
    EXPECT_TRUE(at::equal(decoded, whole.index_select(0, at::tensor({8, 9, 21}, at::kLong))));
  }
}

}  // namespace
}  // namespace distill::kernels::cuda
