// What the host hands to the CUDA kernels of the block cache. T is float or Bf16.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/multiversion.h"

using cudaStream_t = struct CUstream_st*;

namespace distill::kernels::cuda {

template <typename T>
struct WriteCacheArguments {
  T* keys;               // [blocks, kv_heads, dim, block_size]
  T* values;             // [blocks, kv_heads, block_size, value_dim]
  const T* k;            // [tokens, kv_heads, dim], tokens `k_stride` elements apart
  const T* v;            // [tokens, kv_heads, value_dim], tokens `v_stride` elements apart
  const int64_t* slots;  // [tokens]
  int64_t tokens, blocks, kv_heads, dim, value_dim, block_size, k_stride, v_stride;
};

// A block per token.
template <typename T>
LaunchShape write_cache_shape(const WriteCacheArguments<T>& arguments) {
  return {.grid = static_cast<unsigned>(arguments.tokens), .block = threads_for(arguments.kv_heads * arguments.dim)};
}

template <typename T>
struct PagedAttentionArguments {
  const T* q;                       // [tokens, heads, dim]
  const T* keys;                    // [blocks, kv_heads, dim, block_size]
  const T* values;                  // [blocks, kv_heads, block_size, value_dim]
  const int32_t* sequence_offsets;  // [sequences + 1]
  const int32_t* block_table;       // [sequences, max_blocks]
  const int32_t* context_lengths;   // [sequences]
  T* out;                           // [tokens, heads, value_dim]
  int64_t tokens, heads, kv_heads, dim, value_dim, block_size, sequences, max_blocks, window;
  float scale;
};

// Threads of an attention block; also the number of cached positions that it scores at once.
inline constexpr int64_t kAttentionTile = 128;

// Groups of threads that share a tile's positions when values are summed, each with `value_dim` sums.
constexpr int64_t attention_parts(int64_t value_dim) {
  const int64_t width = (value_dim + kWarpSize - 1) / kWarpSize * kWarpSize;
  return width < kAttentionTile ? kAttentionTile / width : 1;
}

// A block per token and head; its shared memory holds the query, a tile of weights and the sums of values.
template <typename T>
LaunchShape paged_attention_shape(const PagedAttentionArguments<T>& a) {
  const int64_t floats = a.dim + kAttentionTile + attention_parts(a.value_dim) * a.value_dim;
  return {.grid = static_cast<unsigned>(a.tokens * a.heads),
          .block = kAttentionTile,
          .shared_bytes = static_cast<std::size_t>(floats) * sizeof(float)};
}

template <typename T>
void launch_write_cache(const WriteCacheArguments<T>& arguments, cudaStream_t stream);
template <typename T>
void launch_paged_attention(const PagedAttentionArguments<T>& arguments, cudaStream_t stream);

}  // namespace distill::kernels::cuda
