// The formula of rms_norm in plain ATen, for tests.
#pragma once

#include <ATen/ATen.h>

namespace distill::kernels::reference {

inline at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x * (x.square().mean(-1, true) + eps).rsqrt() * weight;
}

}  // namespace distill::kernels::reference
