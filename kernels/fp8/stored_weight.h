// A weight matrix used in the form a checkpoint stores it in: fp32, bf16, or FP8 (e4m3) with one fp32 scale per block
// of 128 x 128 values (DeepSeek-V3 §3.3.2; "weight_scale_inv" in its files). Blocks at the right and bottom may be
// ragged.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace distill::kernels {

inline constexpr int64_t kScaleBlock = 128;

struct StoredWeight {
  at::Tensor values;  // [out, in] fp32, bf16 or float8_e4m3fn, contiguous; may be a view of a mapped file
  at::Tensor scales;  // FP8: [ceil(out / 128), ceil(in / 128)] fp32, contiguous; otherwise undefined

  int64_t out() const { return values.size(0); }
  int64_t in() const { return values.size(1); }
};

// Throws c10::Error naming `operation` unless the parts fit together as described above.
void check_stored_weight(const StoredWeight& weight, const char* operation);

// The matrix itself, [out, in] fp32: each FP8 value times its block's scale.
at::Tensor dequantise(const StoredWeight& weight);

// `weight` [out, in] in FP8, each block scaled so that its largest magnitude becomes 448, e4m3's largest. A block of
// zeros gets scale 1.
StoredWeight quantise_fp8(const at::Tensor& weight);

}  // namespace distill::kernels
