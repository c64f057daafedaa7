#include "kernels/packed_linear/packed_linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
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

// The weights of one panel, its outputs `out_stride` apart and its inputs `in_stride`; what there is not is zero. Each
// function writes the pairs of inputs [first, last) to `to` [pairs, 32].
struct PanelSource {
  const uint16_t* values;
  int64_t outputs, inputs, out_stride, in_stride;

  void copy(int64_t first, int64_t last, uint32_t* to) const {
    const bool whole = outputs == kPanelWidth && 2 * last <= inputs;
    if (whole && in_stride == 1) return copy_rows(first, last, to);
    if (whole && out_stride == 1) return copy_columns(first, last, to);
    for (int64_t pair = first; pair < last; ++pair) {
      for (int64_t output = 0; output < kPanelWidth; ++output) {
        to[pair * kPanelWidth + output] = at(output, 2 * pair) | uint32_t{at(output, 2 * pair + 1)} << 16;
      }
    }
  }

 private:
  uint16_t at(int64_t output, int64_t input) const {
    return output < outputs && input < inputs ? values[output * out_stride + input * in_stride] : uint16_t{0};
  }
  void copy_rows(int64_t first, int64_t last, uint32_t* to) const {
    for (int64_t output = 0; output < kPanelWidth; ++output) {
      const uint16_t* const row = values + output * out_stride;
      for (int64_t pair = first; pair < last; ++pair) std::memcpy(to + pair * kPanelWidth + output, row + 2 * pair, 4);
    }
  }
  void copy_columns(int64_t first, int64_t last, uint32_t* to) const {
    for (int64_t pair = first; pair < last; ++pair) {
      const uint16_t* const even = values + 2 * pair * in_stride;
      const uint16_t* const odd = even + in_stride;
      for (int64_t output = 0; output < kPanelWidth; ++output) {
        to[pair * kPanelWidth + output] = even[output] | uint32_t{odd[output]} << 16;
      }
    }
  }
};

// result [panels, pairs, 32, 2] from weight [out, in], both bf16.
void fill_panels(const at::Tensor& weight, const at::Tensor& result) {
  constexpr int64_t kBlock = 16;  // pairs that are read and written together
  const auto* values = reinterpret_cast<const uint16_t*>(weight.const_data_ptr());
  auto* panels = reinterpret_cast<uint32_t*>(result.mutable_data_ptr());
  const int64_t pairs = result.size(1);
  at::parallel_for(0, result.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const PanelSource from{.values = values + panel * kPanelWidth * weight.stride(0),
                             .outputs = std::min(kPanelWidth, weight.size(0) - panel * kPanelWidth),
                             .inputs = weight.size(1),
                             .out_stride = weight.stride(0),
                             .in_stride = weight.stride(1)};
      for (int64_t first = 0; first < pairs; first += kBlock) {
        from.copy(first, std::min(pairs, first + kBlock), panels + panel * pairs * kPanelWidth);
      }
    }
  });
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
  const at::Tensor values = weight.to(dtype);
  const at::Tensor result = at::empty({panels, pairs, kPanelWidth, 2}, values.options());
  fill_panels(values, result);
  return {.panels = result, .in = in, .out = out};
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
