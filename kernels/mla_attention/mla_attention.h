// Multi-head latent attention over a cache that holds no heads: per token one normalised latent and one rotary key
// (DeepSeek-V2 §2.1.2). With the up-projections absorbed into query and output, every head attends to the same entries.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "kernels/attention/paged_attention.h"

namespace distill::kernels {

// Writes latent [tokens, rank] and key [tokens, rope] side by side into `entries` [blocks, block_size, rank + rope] of
// the same dtype (fp32 or bf16) at `slots` [tokens] int64 (block * block_size + offset).
void write_latents(const at::Tensor& entries, const at::Tensor& latent, const at::Tensor& key, const at::Tensor& slots);

// q [tokens, heads, rank + rope] in the dtype of `entries`, contiguous: each head's query carried into the latent space
// beside its rotary part. `sequences` as in paged_attention. Returns [tokens, heads, rank]: softmax(q entry^T * scale)
// latent, causal. Sums are fp32 in ascending position: a query's result never depends on the rest of the batch.
at::Tensor mla_attention(const at::Tensor& q, const at::Tensor& entries, const PagedSequences& sequences, int64_t rank,
                         double scale);

}  // namespace distill::kernels
