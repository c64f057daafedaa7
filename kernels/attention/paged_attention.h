// Attention of new tokens over a cache of key and value blocks, for generation (Kwon et al. 2023, PagedAttention).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace distill::kernels {

// The cache of one layer. A block holds `block_size` tokens of one sequence; keys lie dimension-major so that scores of
// neighbouring tokens are computed side by side.
struct PagedKeysValues {
  at::Tensor keys;    // [blocks, kv_heads, dim, block_size] fp32 or bf16
  at::Tensor values;  // [blocks, kv_heads, block_size, dim_v] likewise
};

// Writes k [tokens, kv_heads, dim] and v [tokens, kv_heads, dim_v] at `slots` [tokens] int64 (block * block_size +
// offset).
void write_cache(const PagedKeysValues& cache, const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots);

// Which part of the cache each query sees: sequence s owns tokens [sequence_offsets[s], sequence_offsets[s + 1]) of q,
// they are the last ones of its context_lengths[s] cached tokens, which lie in blocks block_table[s].
struct PagedSequences {
  at::Tensor sequence_offsets;  // [sequences + 1] int32
  at::Tensor block_table;       // [sequences, max_blocks] int32
  at::Tensor context_lengths;   // [sequences] int32
};

// q [tokens, heads, dim] fp32 or bf16 as the cache; returns [tokens, heads, dim_v]. Causal; `window` as in
// varlen_attention. Sums are fp32 in ascending position: a query's result never depends on the rest of the batch.
at::Tensor paged_attention(const at::Tensor& q, const PagedKeysValues& cache, const PagedSequences& sequences,
                           double scale, int64_t window = 0);

}  // namespace distill::kernels
