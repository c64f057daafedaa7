// The formulas of stored_linear and head_linear in plain ATen, for tests.
#pragma once

#include <ATen/ATen.h>

#include "kernels/stored_linear/stored_linear.h"

namespace distill::kernels::reference {

// In fp64.
inline at::Tensor stored_linear(const at::Tensor& x, const StoredWeight& weight) {
  return x.to(at::kDouble).matmul(dequantise(weight).to(at::kDouble).t());
}

inline at::Tensor head_linear(const at::Tensor& x, const StoredWeight& weight, const HeadRows& heads) {
  std::vector<at::Tensor> outputs;
  for (int64_t h = 0; h < x.size(1); ++h) {
    const at::Tensor rows = dequantise(weight).narrow(0, heads.first + h * heads.stride, heads.rows);
    outputs.push_back(x.select(1, h).to(at::kDouble).matmul(rows.to(at::kDouble).t()));
  }
  return at::stack(outputs, 1);
}

}  // namespace distill::kernels::reference
