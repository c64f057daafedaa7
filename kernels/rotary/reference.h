// The formula of rotary in plain ATen, for tests.
#pragma once

#include <ATen/ATen.h>

namespace distill::kernels::reference {

inline at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = cos.size(-1);
  const auto x1 = x.narrow(-1, 0, half);
  const auto x2 = x.narrow(-1, half, half);
  const auto rest = x.narrow(-1, 2 * half, x.size(-1) - 2 * half);
  const auto c = cos.unsqueeze(1);
  const auto s = sin.unsqueeze(1);
  return at::cat({x1 * c - x2 * s, x2 * c + x1 * s, rest}, -1);
}

}  // namespace distill::kernels::reference
