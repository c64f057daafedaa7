#include "kernels/rotary/rotary_cuda.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/cuda/stream.h"
#include "kernels/storage_type.h"

namespace distill::kernels {
namespace {

at::Tensor rotary_cuda(const at::Tensor& x, const at::Tensor& cos_in, const at::Tensor& sin_in) {
  const at::Tensor cos = cos_in.contiguous();
  const at::Tensor sin = sin_in.contiguous();
  const at::Tensor y = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return y;
  const cuda::CurrentStream stream(x);
  with_storage_type(x, "rotary", [&]<typename T>(T) {
    cuda::launch_rotary<T>({.x = static_cast<const T*>(x.const_data_ptr()),
                            .cos = cos.const_data_ptr<float>(),
                            .sin = sin.const_data_ptr<float>(),
                            .y = static_cast<T*>(y.mutable_data_ptr()),
                            .tokens = x.size(0),
                            .heads = x.size(1),
                            .dim = x.size(2),
                            .half = cos.size(1),
                            .token_stride = x.stride(0)},
                           stream);
  });
  stream.check();
  return y;
}

TORCH_LIBRARY_IMPL(distill, CUDA, library) {
  library.impl("rotary", rotary_cuda);
}

}  // namespace
}  // namespace distill::kernels
