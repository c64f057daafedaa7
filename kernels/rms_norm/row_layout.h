// How the rows of rms_norm's input lie in memory, for every device.
#pragma once

#include <cstdint>

namespace distill::kernels {

// Dimension 0 of x may be strided (a slice of a fused projection), the rest is contiguous, and each outer row holds
// `inner` normalised rows of `size` elements. Results are contiguous: row r begins at r * size.
struct RowLayout {
  int64_t outer, inner, outer_stride, size;

  constexpr int64_t rows() const { return outer * inner; }
  constexpr int64_t offset(int64_t row) const { return row / inner * outer_stride + row % inner * size; }

  template <typename Tensor>
  static RowLayout of(const Tensor& x) {
    return {.outer = x.dim() > 1 ? x.size(0) : 1,
            .inner = x.dim() > 1 && x.size(0) > 0 ? x[0].numel() / x.size(-1) : 1,
            .outer_stride = x.dim() > 1 ? x.stride(0) : x.numel(),
            .size = x.size(-1)};
  }
};

// x itself, or a copy where more than dimension 0 is strided.
template <typename Tensor>
Tensor with_contiguous_rows(const Tensor& x) {
  return x.dim() > 1 && x.numel() > 0 && !x[0].is_contiguous() ? x.contiguous() : x;
}

}  // namespace distill::kernels
