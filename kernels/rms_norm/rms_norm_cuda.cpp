#include "kernels/rms_norm/rms_norm_cuda.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/cuda/stream.h"
#include "kernels/storage_type.h"

namespace distill::kernels {
namespace {

at::Tensor rms_norm_cuda(const at::Tensor& x_in, const at::Tensor& weight, double eps) {
  const at::Tensor x = with_contiguous_rows(x_in);
  const at::Tensor weight_fp32 = weight.to(at::kFloat).contiguous();
  const at::Tensor y = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return y;
  const cuda::CurrentStream stream(x);
  with_storage_type(x, "rms_norm", [&]<typename T>(T) {
    cuda::launch_rms_norm<T>({.x = static_cast<const T*>(x.const_data_ptr()),
                              .weight = weight_fp32.const_data_ptr<float>(),
                              .y = static_cast<T*>(y.mutable_data_ptr()),
                              .layout = RowLayout::of(x),
                              .eps = static_cast<float>(eps)},
                             stream);
  });
  stream.check();
  return y;
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward_cuda(const at::Tensor& grad, const at::Tensor& x_in,
                                                          const at::Tensor& weight, double eps) {
  const at::Tensor x = with_contiguous_rows(x_in);
  const at::Tensor weight_fp32 = weight.to(at::kFloat).contiguous();
  const at::Tensor grad_x = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return {grad_x, at::zeros_like(weight)};
  const at::Tensor grad_weight = at::empty({cuda::kRmsNormParts, x.size(-1)}, weight_fp32.options());
  const cuda::CurrentStream stream(x);
  with_storage_type(x, "rms_norm", [&]<typename T>(T) {
    cuda::launch_rms_norm_backward<T>({.grad = static_cast<const T*>(grad.const_data_ptr()),
                                       .x = static_cast<const T*>(x.const_data_ptr()),
                                       .weight = weight_fp32.const_data_ptr<float>(),
                                       .grad_x = static_cast<T*>(grad_x.mutable_data_ptr()),
                                       .grad_weight = grad_weight.mutable_data_ptr<float>(),
                                       .layout = RowLayout::of(x),
                                       .eps = static_cast<float>(eps)},
                                      stream);
  });
  stream.check();
  return {grad_x, grad_weight.sum(0).to(weight.scalar_type())};
}

TORCH_LIBRARY_IMPL(distill, CUDA, library) {
  library.impl("rms_norm", rms_norm_cuda);
  library.impl("rms_norm_backward", rms_norm_backward_cuda);
}

}  // namespace
}  // namespace distill::kernels
