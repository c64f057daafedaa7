// How the operator tests compare with formulas in fp64.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <functional>
#include <vector>

namespace distill::kernels {

// One rounding to bf16 (8 significant bits), with a little room for fp32 sums.
inline constexpr double kBf16Rounding = 0x1.1p-8;

inline at::Tensor random(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::kDouble);
}

inline at::Tensor as_bf16(const at::Tensor& x) {
  return x.to(at::kBFloat16).to(at::kDouble);
}

// Largest error of an element relative to the element or, where that is larger, to a hundredth of the root mean square.
inline double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor reference = expected.to(at::kDouble);
  const at::Tensor scale = reference.abs().clamp_min(0.01 * reference.square().mean().sqrt().item<double>() + 1e-30);
  return ((actual.to(at::kDouble) - reference).abs() / scale).max().item<double>();
}

// Largest error of an element relative to the root mean square of all, for sums whose terms may cancel.
inline double scaled_error(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor reference = expected.to(at::kDouble);
  return (actual.to(at::kDouble) - reference).abs().max().item<double>() /
         reference.square().mean().sqrt().item<double>();
}

using Inputs = std::vector<at::Tensor>;

// Gradients of sum(upstream * f(inputs)) for `actual` in fp32 and `expected` in fp64.
inline void expect_same_gradients(const Inputs& inputs, const at::Tensor& upstream,
                                  const std::function<at::Tensor(const Inputs&)>& actual,
                                  const std::function<at::Tensor(const Inputs&)>& expected, double tolerance = 1e-5) {
  const auto gradients = [&](const auto& function, at::ScalarType dtype) {
    Inputs leaves;
    for (const auto& input : inputs) leaves.push_back(input.to(dtype).clone().requires_grad_());
    (function(leaves) * upstream.to(dtype)).sum().backward();
    for (auto& leaf : leaves) leaf = leaf.grad();
    return leaves;
  };
  const Inputs ours = gradients(actual, at::kFloat);
  const Inputs theirs = gradients(expected, at::kDouble);
  for (size_t i = 0; i < inputs.size(); ++i) EXPECT_LT(relative_error(ours[i], theirs[i]), tolerance) << "input " << i;
}

}  // namespace distill::kernels
