#include "kernels/stored_linear/stored_linear.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>

namespace distill::kernels {
namespace {

TORCH_LIBRARY_FRAGMENT(distill, library) {
  library.def(
      "stored_linear(Tensor x, Tensor values, Tensor? scales, Tensor? bias, Tensor? residual, ScalarType out_dtype) -> "
      "Tensor");
  library.def("head_linear(Tensor x, Tensor values, Tensor? scales, int first, int stride, int rows) -> Tensor");
}

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

bool is_activation_type(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16;
}

}  // namespace

at::Tensor stored_linear(const at::Tensor& x, const StoredWeight& weight, const at::Tensor& bias,
                         const at::Tensor& residual, at::ScalarType out_dtype) {
  check_stored_weight(weight, "stored_linear");
  TORCH_CHECK(x.dim() == 2 && x.size(1) == weight.in() && x.is_contiguous() && is_activation_type(x.scalar_type()),
              "stored_linear: x must be fp32 or bf16 [tokens, ", weight.in(), "] and contiguous, is ", x.scalar_type(),
              " ", x.sizes());
  TORCH_CHECK(!bias.defined() || (bias.numel() == weight.out() && bias.scalar_type() == at::kFloat),
              "stored_linear: bias must be fp32 [", weight.out(), "]");
  TORCH_CHECK(!residual.defined() ||
                  (residual.dim() == 2 && residual.size(0) == x.size(0) && residual.size(1) == weight.out() &&
                   residual.is_contiguous() && residual.scalar_type() == x.scalar_type()),
              "stored_linear: residual must be ", x.scalar_type(), " [", x.size(0), ", ", weight.out(),
              "] and contiguous");
  TORCH_CHECK(is_activation_type(out_dtype), "stored_linear: out_dtype must be fp32 or bf16, is ", out_dtype);
  using Optional = std::optional<at::Tensor>;
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("distill::stored_linear", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const Optional&, const Optional&,
                                               const Optional&, at::ScalarType)>();
  return op.call(x, weight.values, if_defined(weight.scales), if_defined(bias), if_defined(residual), out_dtype);
}

at::Tensor head_linear(const at::Tensor& x, const StoredWeight& weight, const HeadRows& heads) {
  check_stored_weight(weight, "head_linear");
  TORCH_CHECK(x.dim() == 3 && x.size(2) == weight.in() && x.stride(2) == 1 && is_activation_type(x.scalar_type()),
              "head_linear: x must be fp32 or bf16 [tokens, heads, ", weight.in(), "], is ", x.scalar_type(), " ",
              x.sizes());
  TORCH_CHECK(heads.first >= 0 && heads.stride >= 0 && heads.rows > 0 &&
                  heads.first + (x.size(1) - 1) * heads.stride + heads.rows <= weight.out(),
              "head_linear: rows ", heads.first, " + ", x.size(1), " x ", heads.stride, " lie outside a weight of ",
              weight.out(), " rows");
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("distill::head_linear", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                               int64_t, int64_t, int64_t)>();
  return op.call(x, weight.values, if_defined(weight.scales), heads.first, heads.stride, heads.rows);
}

}  // namespace distill::kernels
