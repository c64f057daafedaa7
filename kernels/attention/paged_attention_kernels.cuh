// Kernel bodies of the block cache: writing tokens into it, and attention over it with a running softmax (Milakov &
// Gimelshein 2018; Dao et al. 2022, FlashAttention, algorithm 1).
#pragma once

#include "kernels/attention/paged_attention_cuda.h"
#include "kernels/cuda/device.cuh"

namespace distill::kernels::cuda {

template <typename T>
__global__ void write_cache_kernel(WriteCacheArguments<T> a) {
  const int64_t token = blockIdx.x;
  const int64_t block = a.slots[token] / a.block_size;
  const int64_t offset = a.slots[token] % a.block_size;
  if (a.slots[token] < 0 || block >= a.blocks) __trap();  // the slot lies outside the cache
  for (int64_t i = threadIdx.x; i < a.kv_heads * a.dim; i += blockDim.x) {
    a.keys[(block * a.kv_heads * a.dim + i) * a.block_size + offset] = a.k[token * a.k_stride + i];
  }
  for (int64_t i = threadIdx.x; i < a.kv_heads * a.value_dim; i += blockDim.x) {
    const int64_t head = i / a.value_dim;
    a.values[((block * a.kv_heads + head) * a.block_size + offset) * a.value_dim + i % a.value_dim] =
        a.v[token * a.v_stride + i];
  }
}

// The sequence that owns `token`: the last one that begins at or before it.
__device__ inline int64_t sequence_of(const int32_t* sequence_offsets, int64_t sequences, int64_t token) {
  int64_t low = 0;
  int64_t high = sequences;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (sequence_offsets[middle] <= token ? low : high) = middle;
  }
  return low;
}

// The cached keys and values of one sequence and one kv head.
template <typename T>
struct CachedHead {
  const T* keys;
  const T* values;
  const int32_t* blocks;
  int64_t key_stride, value_stride;  // from block to block
  int64_t dim, value_dim, block_size;

  __device__ float score(const float* query, int64_t position) const {
    const T* key = keys + blocks[position / block_size] * key_stride + position % block_size;
    float sum = 0;
    for (int64_t d = 0; d < dim; ++d) sum += query[d] * load(key[d * block_size]);
    return sum;
  }
  __device__ const T* value(int64_t position) const {
    return values + blocks[position / block_size] * value_stride + position % block_size * value_dim;
  }
};

template <typename T>
__global__ void paged_attention_kernel(PagedAttentionArguments<T> a) {
  const int64_t token = blockIdx.x / a.heads;
  const int64_t head = blockIdx.x % a.heads;
  const int64_t kv_head = head / (a.heads / a.kv_heads);
  const int64_t sequence = sequence_of(a.sequence_offsets, a.sequences, token);
  const int64_t end = a.context_lengths[sequence] - (a.sequence_offsets[sequence + 1] - 1 - token);
  const int64_t first = a.window > 0 && end > a.window ? end - a.window : 0;
  const CachedHead<T> cached{a.keys + kv_head * a.dim * a.block_size,
                             a.values + kv_head * a.block_size * a.value_dim,
                             a.block_table + sequence * a.max_blocks,
                             a.kv_heads * a.dim * a.block_size,
                             a.kv_heads * a.block_size * a.value_dim,
                             a.dim,
                             a.value_dim,
                             a.block_size};

  const int64_t parts = attention_parts(a.value_dim);
  const int64_t width = kAttentionTile / parts;  // threads of a part
  const int64_t part = threadIdx.x / width;
  const int64_t lane = threadIdx.x % width;
  float* query = dynamic_shared();         // [dim], scaled
  float* weights = query + a.dim;          // [kAttentionTile]
  float* sums = weights + kAttentionTile;  // [parts, value_dim]
  const T* q = a.q + blockIdx.x * a.dim;
  for (int64_t d = threadIdx.x; d < a.dim; d += blockDim.x) query[d] = load(q[d]) * a.scale;
  for (int64_t d = lane; d < a.value_dim; d += width) sums[part * a.value_dim + d] = 0;
  __syncthreads();

  float maximum = Maximum::kIdentity;
  float total = 0;
  for (int64_t tile = first; tile < end; tile += kAttentionTile) {
    const int64_t position = tile + threadIdx.x;
    const bool visible = position < end;
    const float score = visible ? cached.score(query, position) : Maximum::kIdentity;
    const float new_maximum = fmaxf(maximum, reduce_block<Maximum>(score));
    const float weight = visible ? expf(score - new_maximum) : 0.0f;
    const float rescale = expf(maximum - new_maximum);
    weights[threadIdx.x] = weight;
    total = total * rescale + reduce_block<Sum>(weight);  // its barriers also publish `weights`
    maximum = new_maximum;

    const int64_t count = end - tile < kAttentionTile ? end - tile : kAttentionTile;
    for (int64_t d = lane; d < a.value_dim; d += width) {
      float sum = sums[part * a.value_dim + d] * rescale;
      for (int64_t j = part; j < count; j += parts) sum += weights[j] * load(cached.value(tile + j)[d]);
      sums[part * a.value_dim + d] = sum;
    }
    __syncthreads();  // before the next tile's weights, and before the sums are read
  }

  T* out = a.out + blockIdx.x * a.value_dim;
  for (int64_t d = threadIdx.x; d < a.value_dim; d += blockDim.x) {
    float sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += sums[p * a.value_dim + d];
    out[d] = store<T>(sum / total);
  }
}

}  // namespace distill::kernels::cuda
