// The formula of mla_attention in plain ATen for one sequence whose entries lie in order, for tests.
#pragma once

#include <ATen/ATen.h>

#include <limits>

namespace distill::kernels::reference {

// q [tokens, heads, rank + rope], entries [context, rank + rope]; the queries belong to the last positions.
inline at::Tensor mla_attention(const at::Tensor& q, const at::Tensor& entries, int64_t rank, double scale) {
  const int64_t before = entries.size(0) - q.size(0);
  const at::Tensor hidden = at::ones({q.size(0), entries.size(0)}, at::kBool).triu(before + 1).unsqueeze(1);
  const at::Tensor scores = at::matmul(q, entries.t()) * scale;  // [tokens, heads, context]
  const at::Tensor weights = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity()).softmax(-1);
  return at::matmul(weights, entries.narrow(1, 0, rank));
}

}  // namespace distill::kernels::reference
