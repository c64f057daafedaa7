#include "kernels/fp8/stored_weight.h"

#include <ATen/ATen.h>

#include "kernels/fp8/e4m3.h"

namespace distill::kernels {
namespace {

int64_t blocks_of(int64_t size) {
  return (size + kScaleBlock - 1) / kScaleBlock;
}

// [out, in] fp32 with each block's scale repeated over its values.
at::Tensor expand_scales(const at::Tensor& scales, int64_t out, int64_t in) {
  return scales.repeat_interleave(kScaleBlock, 0).repeat_interleave(kScaleBlock, 1).slice(0, 0, out).slice(1, 0, in);
}

}  // namespace

void check_stored_weight(const StoredWeight& weight, const char* operation) {
  const at::Tensor& values = weight.values;
  TORCH_CHECK(values.defined() && values.dim() == 2 && values.is_contiguous(), operation,
              ": a weight must be [out, in] and contiguous");
  const at::ScalarType type = values.scalar_type();
  if (type != at::kFloat8_e4m3fn) {
    TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, operation,
                ": a weight must be fp32, bf16 or float8_e4m3fn, is ", type);
    TORCH_CHECK(!weight.scales.defined(), operation, ": a weight of type ", type, " has no scales");
    return;
  }
  TORCH_CHECK(weight.scales.defined() && weight.scales.dim() == 2 && weight.scales.is_contiguous() &&
                  weight.scales.scalar_type() == at::kFloat && weight.scales.size(0) == blocks_of(values.size(0)) &&
                  weight.scales.size(1) == blocks_of(values.size(1)),
              operation, ": an FP8 weight of ", values.sizes(), " needs fp32 scales of [", blocks_of(values.size(0)),
              ", ", blocks_of(values.size(1)), "]");
}

at::Tensor dequantise(const StoredWeight& weight) {
  check_stored_weight(weight, "dequantise");
  const at::Tensor values = weight.values.to(at::kFloat);
  return weight.scales.defined() ? values * expand_scales(weight.scales, weight.out(), weight.in()) : values;
}

StoredWeight quantise_fp8(const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2, "quantise_fp8: the weight must be [out, in], is ", weight.sizes());
  const int64_t out = weight.size(0);
  const int64_t in = weight.size(1);
  const at::Tensor padded = at::constant_pad_nd(
      weight.to(at::kFloat), {0, blocks_of(in) * kScaleBlock - in, 0, blocks_of(out) * kScaleBlock - out});
  const at::Tensor largest = padded.view({blocks_of(out), kScaleBlock, blocks_of(in), kScaleBlock}).abs().amax({1, 3});
  const at::Tensor scales = at::where(largest > 0, largest / kLargestE4m3, at::ones_like(largest)).contiguous();
  return {.values = (weight.to(at::kFloat) / expand_scales(scales, out, in)).to(at::kFloat8_e4m3fn).contiguous(),
          .scales = scales};
}

}  // namespace distill::kernels
