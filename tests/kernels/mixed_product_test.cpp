#include "kernels/mixed_product.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace distill::kernels {
namespace {

TEST(MixedProduct, EqualsTheProductInFp64WhateverTheLayout) {
  at::manual_seed(0);
  struct Shape {
    int64_t m, k, n;
  };
  for (const auto [m, k, n] : {Shape{1, 1, 1}, {3, 70, 33}, {65, 32, 64}, {1100, 96, 40}}) {
    for (const bool a_transposed : {false, true}) {
      for (const bool b_transposed : {false, true}) {
        for (const float beta : {0.0f, 1.0f, 0.5f}) {
          const auto matrix = [](int64_t rows, int64_t columns, bool transposed) {
            return transposed ? at::randn({columns, rows}).to(at::kBFloat16).t()
                              : at::randn({rows, columns}).to(at::kBFloat16);
          };
          const at::Tensor a = matrix(m, k, a_transposed);
          const at::Tensor b = matrix(k, n, b_transposed);
          const at::Tensor wide = at::randn({m, n + 5});
          const at::Tensor c = wide.narrow(1, 0, n);
          const at::Tensor beside = wide.narrow(1, n, 5).clone();
          const at::Tensor expected = at::matmul(a.to(at::kDouble), b.to(at::kDouble)) + beta * c.to(at::kDouble);
          multiply_into(c, a, b, beta);
          EXPECT_LT((c.to(at::kDouble) - expected).abs().max().item<double>(), 1e-4)
              << m << " x " << k << " x " << n << ", beta " << beta;
          EXPECT_TRUE(wide.narrow(1, n, 5).equal(beside));
        }
      }
    }
  }
}

}  // namespace
}  // namespace distill::kernels
