// Runs a generic body with the storage type of a tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/multiversion.h"

namespace distill::kernels {

// Calls body(float{}) or body(Bf16{}). Throws on any other dtype, naming `operation`.
template <typename Body>
void with_storage_type(const at::Tensor& x, const char* operation, Body&& body) {
  if (x.scalar_type() == at::kFloat) {
    body(float{});
  } else {
    TORCH_CHECK(x.scalar_type() == at::kBFloat16, operation, ": expected fp32 or bf16, found ", x.scalar_type());
    body(Bf16{});
  }
}

}  // namespace distill::kernels
