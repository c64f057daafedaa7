#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/storage_type.h"

namespace distill::kernels {
namespace {

constexpr int64_t kGrain = 16384;  // multiply-adds worth a thread

// One query head against the blocks of its sequence. Positions [first, end) are visible.
template <typename T>
struct QueryHead {
  const T* q;             // [dim]
  const T* keys;          // of this kv head in block 0; blocks are key_stride apart
  const T* values;        // likewise, value_stride apart
  const int32_t* blocks;  // of this sequence
  int64_t key_stride, value_stride;
  int64_t dim, value_dim, block_size;
  int64_t first, end;
  float scale;
};

// scores [block_size] of one block: keys lie [dim, block_size], so each step is one multiply-add over neighbouring
// tokens.
template <typename T>
[[gnu::always_inline]] inline void score_block(const QueryHead<T>& head, const T* keys, float* scores) {
#pragma omp simd
  for (int64_t j = 0; j < head.block_size; ++j) scores[j] = 0;
  for (int64_t d = 0; d < head.dim; ++d) {
    const float q = to_float(head.q[d]) * head.scale;
    const T* row = keys + d * head.block_size;
#pragma omp simd
    for (int64_t j = 0; j < head.block_size; ++j) scores[j] += q * to_float(row[j]);
  }
}

// `scores` [visible blocks * block_size] and `sum` [value_dim] are scratch.
template <typename T>
[[gnu::always_inline]] inline void attend(const QueryHead<T>& head, float* scores, float* sum, T* out) {
  const int64_t first_block = head.first / head.block_size;
  const int64_t end_block = (head.end + head.block_size - 1) / head.block_size;
  for (int64_t b = first_block; b < end_block; ++b) {
    score_block(head, head.keys + head.blocks[b] * head.key_stride, scores + (b - first_block) * head.block_size);
  }
  float* visible = scores + (head.first - first_block * head.block_size);
  const int64_t count = head.end - head.first;
  float maximum = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : maximum)
  for (int64_t j = 0; j < count; ++j) maximum = std::max(maximum, visible[j]);
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < count; ++j) {
    visible[j] = vector_exp(visible[j] - maximum);
    total += visible[j];
  }
#pragma omp simd
  for (int64_t d = 0; d < head.value_dim; ++d) sum[d] = 0;
  for (int64_t position = head.first; position < head.end; ++position) {
    const float weight = visible[position - head.first];
    const T* value = head.values + head.blocks[position / head.block_size] * head.value_stride +
                     position % head.block_size * head.value_dim;
#pragma omp simd
    for (int64_t d = 0; d < head.value_dim; ++d) sum[d] += weight * to_float(value[d]);
  }
  const float inverse = 1.0f / total;
#pragma omp simd
  for (int64_t d = 0; d < head.value_dim; ++d) out[d] = from_float<T>(sum[d] * inverse);
}

DISTILL_MULTIVERSION void attend_head(const QueryHead<float>& head, float* scores, float* sum, float* out) {
  attend(head, scores, sum, out);
}
DISTILL_MULTIVERSION void attend_head(const QueryHead<Bf16>& head, float* scores, float* sum, Bf16* out) {
  attend(head, scores, sum, out);
}

// For each token: its sequence and the end of its context (causal: one past its own position).
struct TokenContext {
  int64_t sequence, end;
};

std::vector<TokenContext> contexts_of(const at::Tensor& sequence_offsets, const at::Tensor& context_lengths) {
  std::vector<TokenContext> contexts;
  const auto* offset = sequence_offsets.const_data_ptr<int32_t>();
  const auto* length = context_lengths.const_data_ptr<int32_t>();
  for (int64_t s = 0; s < context_lengths.size(0); ++s) {
    for (int64_t t = offset[s]; t < offset[s + 1]; ++t) contexts.push_back({s, length[s] - (offset[s + 1] - 1 - t)});
  }
  return contexts;
}

at::Tensor paged_attention_cpu(const at::Tensor& q_in, const at::Tensor& keys, const at::Tensor& values,
                               const at::Tensor& sequence_offsets, const at::Tensor& block_table_in,
                               const at::Tensor& context_lengths, double scale, int64_t window) {
  const at::Tensor q = q_in.contiguous();
  const at::Tensor block_table = block_table_in.contiguous();
  const std::vector<TokenContext> contexts = contexts_of(sequence_offsets.contiguous(), context_lengths.contiguous());
  const int64_t heads = q.size(1);
  const int64_t group = heads / keys.size(1);
  const int64_t dim = keys.size(2);
  const int64_t block_size = keys.size(3);
  const int64_t value_dim = values.size(3);
  const at::Tensor out = at::empty({q.size(0), heads, value_dim}, q.options());
  TORCH_CHECK(static_cast<int64_t>(contexts.size()) == q.size(0), "paged_attention: sequence_offsets cover ",
              contexts.size(), " of ", q.size(0), " tokens");

  int64_t longest = 1;
  int64_t work = 0;
  for (const auto& context : contexts) {
    longest = std::max(longest, context.end);
    work += context.end * (dim + value_dim);
  }
  TORCH_CHECK((longest + block_size - 1) / block_size <= block_table.size(1), "paged_attention: a context of ", longest,
              " tokens does not fit ", block_table.size(1), " blocks");
  const int64_t items = q.size(0) * heads;
  const int64_t grain = std::max<int64_t>(1, kGrain * items / std::max<int64_t>(1, work * heads));

  with_storage_type(q, "paged_attention", [&]<typename T>(T) {
    const auto* query = static_cast<const T*>(q.const_data_ptr());
    const auto* key = static_cast<const T*>(keys.const_data_ptr());
    const auto* value = static_cast<const T*>(values.const_data_ptr());
    const auto* table = block_table.const_data_ptr<int32_t>();
    auto* to = static_cast<T*>(out.mutable_data_ptr());
    at::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(static_cast<size_t>(longest + 2 * block_size + value_dim));
      for (int64_t item = begin; item < end; ++item) {
        const TokenContext context = contexts[static_cast<size_t>(item / heads)];
        const int64_t kv_head = item % heads / group;
        const QueryHead<T> head{
            .q = query + item * dim,
            .keys = key + kv_head * dim * block_size,
            .values = value + kv_head * block_size * value_dim,
            .blocks = table + context.sequence * block_table.size(1),
            .key_stride = keys.size(1) * dim * block_size,
            .value_stride = values.size(1) * block_size * value_dim,
            .dim = dim,
            .value_dim = value_dim,
            .block_size = block_size,
            .first = window > 0 ? std::max<int64_t>(0, context.end - window) : 0,
            .end = context.end,
            .scale = static_cast<float>(scale),
        };
        attend_head(head, scratch.data() + value_dim, scratch.data(), to + item * value_dim);
      }
    });
  });
  return out;
}

template <typename T>
void write_tokens(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& k, const at::Tensor& v,
                  const at::Tensor& slots) {
  const int64_t heads = keys.size(1);
  const int64_t dim = keys.size(2);
  const int64_t block_size = keys.size(3);
  const int64_t value_dim = values.size(3);
  const auto* slot = slots.const_data_ptr<int64_t>();
  const auto* from_k = static_cast<const T*>(k.const_data_ptr());
  const auto* from_v = static_cast<const T*>(v.const_data_ptr());
  auto* to_k = static_cast<T*>(keys.mutable_data_ptr());
  auto* to_v = static_cast<T*>(values.mutable_data_ptr());
  for (int64_t t = 0; t < slots.size(0); ++t) {
    const int64_t block = slot[t] / block_size;
    const int64_t offset = slot[t] % block_size;
    TORCH_CHECK_INDEX(slot[t] >= 0 && block < keys.size(0), "write_cache: slot ", slot[t], " lies outside the cache");
    for (int64_t h = 0; h < heads; ++h) {
      const T* key = from_k + t * k.stride(0) + h * dim;
      T* column = to_k + (block * heads + h) * dim * block_size + offset;
      for (int64_t d = 0; d < dim; ++d) column[d * block_size] = key[d];
      const T* value = from_v + t * v.stride(0) + h * value_dim;
      std::copy(value, value + value_dim, to_v + ((block * heads + h) * block_size + offset) * value_dim);
    }
  }
}

void write_cache_cpu(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& slots) {
  with_storage_type(keys, "write_cache", [&]<typename T>(T) { write_tokens<T>(keys, values, k, v, slots); });
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("write_cache", write_cache_cpu);
  library.impl("paged_attention", paged_attention_cpu);
}

}  // namespace
}  // namespace distill::kernels
