// Causal attention over packed sequences, for training and for scoring whole sequences.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace distill::kernels {

// q [tokens, heads, dim], k and v [tokens, kv_heads, dim] with heads a multiple of kv_heads; `sequence_offsets`
// [sequences + 1] int32: token t attends to the tokens of its own sequence at or before it, and with `window` > 0 only
// to the last `window` of them (itself included). With `key_offsets`, likewise [sequences + 1] int32, k and v hold more
// tokens than q: the queries are each sequence's last ones. Returns [tokens, heads, dim_v]. Differentiable. softmax(q
// k^T * scale) v (Vaswani et al. 2017, eq. 1), grouped heads as in Ainslie et al. 2023 (GQA).
at::Tensor varlen_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& sequence_offsets, double scale, int64_t window = 0,
                            const at::Tensor& key_offsets = {});

}  // namespace distill::kernels
