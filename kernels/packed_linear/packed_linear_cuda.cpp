// On CUDA the product itself is cuBLAS's, with the weight as a plain matrix (see pack_weight) and an fp32 result.
#include "kernels/packed_linear/packed_linear_cuda.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>

#include "kernels/cuda/stream.h"

namespace distill::kernels {
namespace {

template <typename T, typename V>
void finish(const at::Tensor& product, const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual,
            const at::Tensor& y) {
  const cuda::CurrentStream stream(product);
  cuda::launch_finish_linear<T, V>({.product = product.const_data_ptr<float>(),
                                    .bias = bias ? bias->const_data_ptr<float>() : nullptr,
                                    .residual = residual ? static_cast<const V*>(residual->const_data_ptr()) : nullptr,
                                    .y = static_cast<T*>(y.mutable_data_ptr()),
                                    .tokens = y.size(0),
                                    .out = y.size(1)},
                                   stream);
  stream.check();
}

at::Tensor packed_linear_cuda(const at::Tensor& x, const at::Tensor& matrix, const std::optional<at::Tensor>& scales,
                              int64_t out, const std::optional<at::Tensor>& bias,
                              const std::optional<at::Tensor>& residual, at::ScalarType out_dtype) {
  TORCH_CHECK(!scales && matrix.dim() == 2 && matrix.size(0) == out && matrix.size(1) == x.size(1),
              "packed_linear: the weight was packed for the CPU; pack it from a CUDA tensor");
  const bool fp32 = matrix.scalar_type() == at::kFloat;
  const at::Tensor product = fp32 ? at::mm(x, matrix.t()) : at::mm(x, matrix.t(), at::kFloat);
  if (out_dtype == at::kFloat && !bias && !residual) return product;
  const at::Tensor y = at::empty({x.size(0), out}, x.options().dtype(out_dtype));
  if (y.numel() == 0) return y;
  if (fp32) {
    finish<float, float>(product, bias, residual, y);
  } else if (out_dtype == at::kFloat) {
    finish<float, Bf16>(product, bias, residual, y);
  } else {
    finish<Bf16, Bf16>(product, bias, residual, y);
  }
  return y;
}

at::Tensor packed_rows_cuda(const at::Tensor& matrix, const std::optional<at::Tensor>& scales, int64_t width,
                            const at::Tensor& ids) {
  TORCH_CHECK(!scales && matrix.dim() == 2 && width <= matrix.size(1),
              "packed_rows: the weight was packed for the CPU; pack it from a CUDA tensor");
  return matrix.index_select(0, ids).narrow(1, 0, width);
}

TORCH_LIBRARY_IMPL(distill, CUDA, library) {
  library.impl("packed_linear", packed_linear_cuda);
  library.impl("packed_rows", packed_rows_cuda);
}

}  // namespace
}  // namespace distill::kernels
