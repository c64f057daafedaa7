// Multi-head latent attention over a cache that holds no heads: per token one normalised latent and one rotary key
// (DeepSeek-V2 §2.1.2). With the up-projections absorbed into query and output, every head attends to the same entries.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/attention/paged_attention.h"

namespace distill::kernels {

// The cache's entries are [blocks, block_size, rank + rope] fp32 or bf16, or [blocks, block_size, bytes] uint8, which
// is FP8 as fp8_entries.h lays it out. `slots` are [tokens] int64: block * block_size + offset.

// Writes latent [tokens, rank] and key [tokens, rope] side by side into `entries`, of the same dtype unless that is
// FP8.
void write_latents(const at::Tensor& entries, const at::Tensor& latent, const at::Tensor& key, const at::Tensor& slots);

// What entries in FP8 hold at `slots`: [tokens, rank + rope] of type `dtype` (fp32 or bf16).
at::Tensor read_fp8_latents(const at::Tensor& entries, const at::Tensor& slots, int64_t rank, int64_t rope,
                            at::ScalarType dtype);

// q [tokens, heads, rank + rope], contiguous, in the dtype of `entries` unless that is FP8: each head's query carried
// into the latent space beside its rotary part. `sequences` as in paged_attention. Returns [tokens, heads, rank]:
// softmax(q entry^T * scale) latent, causal. Sums are fp32 in ascending position: a query's result never depends on the
// rest of the batch.
at::Tensor mla_attention(const at::Tensor& q, const at::Tensor& entries, const PagedSequences& sequences, int64_t rank,
                         double scale);

}  // namespace distill::kernels
