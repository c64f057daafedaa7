// The formula of swiglu in plain ATen, for tests.
#pragma once

#include <ATen/ATen.h>

namespace distill::kernels::reference {

inline at::Tensor swiglu(const at::Tensor& gate_up) {
  const auto parts = gate_up.chunk(2, -1);
  return at::silu(parts[0]) * parts[1];
}

}  // namespace distill::kernels::reference
