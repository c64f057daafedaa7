#include "kernels/mixed_product.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "kernels/amx_tiles.h"
#include "kernels/cpu_features.h"
#include "kernels/packed_linear/packed_linear.h"

// Part of the MKL inside LibTorch's x86-64 wheel; null where LibTorch was built with another BLAS.
extern "C" __attribute__((weak)) void cblas_gemm_bf16bf16f32(int layout, int transpose_a, int transpose_b, int m, int n,
                                                             int k, float alpha, const void* a, int row_a,
                                                             const void* b, int row_b, float beta, float* c, int row_c);

namespace distill::kernels {
namespace {

constexpr int kRowMajor = 101;
constexpr int kAsIs = 111;
constexpr int kTransposed = 112;

// How BLAS is told about a matrix: whether it lies transposed, and how far apart its rows (or columns) are.
struct Layout {
  int transpose;
  int distance;

  explicit Layout(const at::Tensor& x) {
    const bool transposed = x.stride(1) != 1;
    TORCH_CHECK(!transposed || x.stride(0) == 1, "multiply_into: neither rows nor columns of ", x.sizes(),
                " are contiguous");
    transpose = transposed ? kTransposed : kAsIs;
    distance = static_cast<int>(transposed ? x.stride(1) : x.stride(0));
  }
};

// MKL multiplies bf16 with AMX where there is any. Without it, it widens bf16 to fp32 on processors that are not
// Intel's, and our own kernels take half the time.
bool ours_is_faster() {
  static const bool is = has_avx512_bf16() && !has_amx_bf16();
  return is;
}

// to [rows, columns] = from [columns, rows] transposed, both bf16.
void transpose(const at::Tensor& to, const at::Tensor& from) {
  constexpr int64_t kTile = 32;  // rows and columns whose cache lines are used as a whole
  const int64_t rows = to.size(0);
  const int64_t columns = to.size(1);
  const int64_t distance = from.stride(0);
  const auto* const source = static_cast<const uint16_t*>(from.const_data_ptr());
  auto* const target = static_cast<uint16_t*>(to.mutable_data_ptr());
  at::parallel_for(0, (rows + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kTile; row < std::min(rows, end * kTile); row += kTile) {
      for (int64_t column = 0; column < columns; column += kTile) {
        for (int64_t i = row; i < std::min(rows, row + kTile); ++i) {
          for (int64_t j = column; j < std::min(columns, column + kTile); ++j) {
            target[i * columns + j] = source[j * distance + i];
          }
        }
      }
    }
  });
}

// c = a b, or c += a b, with the weight b^T.
void multiply_packed(const at::Tensor& c, const at::Tensor& a, const PackedWeight& b, bool add) {
  if (a.stride(1) == 1) return packed_linear_into(c, a.contiguous(), b, add);
  constexpr int64_t kRows = 512;  // at a time, to keep the copy small
  const at::Tensor copy = at::empty({std::min(kRows, a.size(0)), a.size(1)}, a.options());
  for (int64_t first = 0; first < a.size(0); first += kRows) {
    const int64_t rows = std::min(kRows, a.size(0) - first);
    const at::Tensor part = copy.narrow(0, 0, rows);
    transpose(part, a.narrow(0, first, rows).t());
    packed_linear_into(c.narrow(0, first, rows), part, b, add);
  }
}

}  // namespace

void multiply_into(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, float beta) {
  TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && c.dim() == 2 && a.size(1) == b.size(0) && c.size(0) == a.size(0) &&
                  c.size(1) == b.size(1) && c.scalar_type() == at::kFloat && a.scalar_type() == b.scalar_type(),
              "multiply_into: a ", a.sizes(), ", b ", b.sizes(), " and c ", c.sizes(), " do not fit together");
  if (a.scalar_type() == at::kBFloat16 && c.is_cpu() && ours_is_faster()) {
    if (beta != 0 && beta != 1) c.mul_(beta);
    multiply_packed(c, a, pack_weight(b.t()), /*add=*/beta != 0);
    return;
  }
  if (a.scalar_type() == at::kBFloat16 && cblas_gemm_bf16bf16f32 != nullptr && c.is_cpu()) {
    const Layout of_a(a);
    const Layout of_b(b);
    cblas_gemm_bf16bf16f32(kRowMajor, of_a.transpose, of_b.transpose, static_cast<int>(c.size(0)),
                           static_cast<int>(c.size(1)), static_cast<int>(a.size(1)), 1.0f, a.const_data_ptr(),
                           of_a.distance, b.const_data_ptr(), of_b.distance, beta, c.mutable_data_ptr<float>(),
                           static_cast<int>(c.stride(0)));
    return;
  }
  at::Tensor out = c;
  const at::Tensor a_fp32 = a.to(at::kFloat);
  const at::Tensor b_fp32 = b.to(at::kFloat);
  if (beta == 0) {
    at::mm_out(out, a_fp32, b_fp32);
  } else {
    at::addmm_out(out, out, a_fp32, b_fp32, beta, 1.0);
  }
}

}  // namespace distill::kernels
