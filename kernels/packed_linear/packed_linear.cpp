#include "kernels/packed_linear/packed_linear.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>

namespace distill::kernels {
namespace {

TORCH_LIBRARY_FRAGMENT(distill, library) {
  library.def(
      "packed_linear(Tensor x, Tensor panels, Tensor? scales, int out, Tensor? bias, Tensor? residual, ScalarType "
      "out_dtype) -> Tensor");
  library.def("packed_rows(Tensor panels, Tensor? scales, int width, Tensor ids) -> Tensor");
}

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

}  // namespace

PackedWeight pack_weight(const at::Tensor& weight, at::ScalarType dtype) {
  TORCH_CHECK(weight.dim() == 2, "pack_weight: weight must be [out, in], is ", weight.sizes());
  TORCH_CHECK(dtype == at::kBFloat16 || dtype == at::kFloat, "pack_weight: weights are packed as bf16 or fp32, not ",
              dtype);
  const int64_t out = weight.size(0);
  const int64_t in = weight.size(1);
  const int64_t pairs = (in + 2 * kPairAlignment - 1) / (2 * kPairAlignment) * kPairAlignment;
  if (weight.is_cuda()) {
    const int64_t missing_inputs = dtype == at::kFloat ? 0 : 2 * pairs - in;
    return {.panels = at::constant_pad_nd(weight.to(dtype), {0, missing_inputs}).contiguous(), .in = in, .out = out};
  }
  const int64_t panels = (out + kPanelWidth - 1) / kPanelWidth;
  const int64_t missing = panels * kPanelWidth - out;
  if (dtype == at::kFloat) {
    const at::Tensor padded = at::constant_pad_nd(weight.to(dtype), {0, 0, 0, missing});
    return {.panels = padded.view({panels, kPanelWidth, in}).transpose(1, 2).contiguous(), .in = in, .out = out};
  }
  const at::Tensor padded = at::constant_pad_nd(weight.to(dtype), {0, 2 * pairs - in, 0, missing});
  return {.panels = padded.view({panels, kPanelWidth, pairs, 2}).transpose(1, 2).contiguous(), .in = in, .out = out};
}

at::ScalarType value_type(const PackedWeight& weight) {
  return weight.panels.scalar_type() == at::kFloat ? at::kFloat : at::kBFloat16;
}

at::Tensor packed_linear(const at::Tensor& x, const PackedWeight& weight, const at::Tensor& bias,
                         const at::Tensor& residual, at::ScalarType out_dtype) {
  const at::ScalarType type = value_type(weight);
  TORCH_CHECK(x.dim() == 2 && x.size(1) == weight.in && x.is_contiguous() && x.scalar_type() == type,
              "packed_linear: x must be ", type, " [tokens, ", weight.in, "] and contiguous, is ", x.scalar_type(), " ",
              x.sizes());
  TORCH_CHECK(!bias.defined() || (bias.numel() == weight.out && bias.scalar_type() == at::kFloat),
              "packed_linear: bias must be fp32 [", weight.out, "]");
  TORCH_CHECK(!residual.defined() || (residual.size(0) == x.size(0) && residual.size(1) == weight.out &&
                                      residual.is_contiguous() && residual.scalar_type() == type),
              "packed_linear: residual must be ", type, " [", x.size(0), ", ", weight.out, "] and contiguous");
  TORCH_CHECK(out_dtype == at::kFloat || out_dtype == type, "packed_linear: out_dtype must be fp32 or ", type, ", is ",
              out_dtype);
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("distill::packed_linear", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, int64_t,
                            const std::optional<at::Tensor>&, const std::optional<at::Tensor>&, at::ScalarType)>();
  constexpr int64_t kInputs = 2 * kPairAlignment;
  const int64_t missing = type == at::kFloat ? 0 : (kInputs - weight.in % kInputs) % kInputs;
  return op.call(missing == 0 ? x : at::constant_pad_nd(x, {0, missing}), weight.panels, if_defined(weight.scales),
                 weight.out, if_defined(bias), if_defined(residual), out_dtype);
}

at::Tensor packed_rows(const PackedWeight& weight, const at::Tensor& ids) {
  TORCH_CHECK(ids.dim() == 1 && ids.scalar_type() == at::kLong, "packed_rows: ids must be int64 [tokens], are ",
              ids.scalar_type(), " ", ids.sizes());
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("distill::packed_rows", "")
          .typed<at::Tensor(const at::Tensor&, const std::optional<at::Tensor>&, int64_t, const at::Tensor&)>();
  return op.call(weight.panels, if_defined(weight.scales), weight.in, ids);
}

}  // namespace distill::kernels
