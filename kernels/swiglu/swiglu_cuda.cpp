#include "kernels/swiglu/swiglu_cuda.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/cuda/stream.h"
#include "kernels/storage_type.h"

namespace distill::kernels {
namespace {

at::Tensor swiglu_cuda(const at::Tensor& gate_up) {
  const int64_t tokens = gate_up.size(0);
  const int64_t size = gate_up.size(1) / 2;
  const at::Tensor y = at::empty({tokens, size}, gate_up.options());
  if (y.numel() == 0) return y;
  const cuda::CurrentStream stream(gate_up);
  with_storage_type(gate_up, "swiglu", [&]<typename T>(T) {
    cuda::launch_swiglu<T>({.gate_up = static_cast<const T*>(gate_up.const_data_ptr()),
                            .y = static_cast<T*>(y.mutable_data_ptr()),
                            .tokens = tokens,
                            .size = size},
                           stream);
  });
  stream.check();
  return y;
}

at::Tensor swiglu_backward_cuda(const at::Tensor& grad, const at::Tensor& gate_up) {
  const at::Tensor grad_gate_up = at::empty_like(gate_up);
  if (gate_up.numel() == 0) return grad_gate_up;
  const cuda::CurrentStream stream(gate_up);
  with_storage_type(gate_up, "swiglu", [&]<typename T>(T) {
    cuda::launch_swiglu_backward<T>({.grad = static_cast<const T*>(grad.const_data_ptr()),
                                     .gate_up = static_cast<const T*>(gate_up.const_data_ptr()),
                                     .grad_gate_up = static_cast<T*>(grad_gate_up.mutable_data_ptr()),
                                     .tokens = gate_up.size(0),
                                     .size = gate_up.size(1) / 2},
                                    stream);
  });
  stream.check();
  return grad_gate_up;
}

TORCH_LIBRARY_IMPL(distill, CUDA, library) {
  library.impl("swiglu", swiglu_cuda);
  library.impl("swiglu_backward", swiglu_backward_cuda);
}

}  // namespace
}  // namespace distill::kernels
