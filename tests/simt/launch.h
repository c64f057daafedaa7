// Launches kernels through the SIMT shim from tests, on tensors in main memory.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/multiversion.h"
#include "tests/simt/simt.h"

namespace distill::kernels::cuda {

template <typename T>
constexpr at::ScalarType scalar_type_of() {
  return sizeof(T) == sizeof(float) ? at::kFloat : at::kBFloat16;
}
template <typename T>
T* data(const at::Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

using BothTypes = testing::Types<float, Bf16>;

// `x` (fp64) rounded to T, as a kernel reads it, and the same values in fp64, as a formula does.
template <typename T>
struct Rounded {
  at::Tensor stored, exact;
  explicit Rounded(const at::Tensor& x) : stored(x.to(scalar_type_of<T>())), exact(stored.to(at::kDouble)) {}
};

// Runs the kernel with threads in ascending, then in descending order, and expects the same bits in every output both
// times: a missing barrier shows here. `outputs` are refilled with NaN before each run.
template <typename Arguments>
void launch(const LaunchShape& shape, void (*kernel)(Arguments), const Arguments& arguments,
            const std::vector<at::Tensor>& outputs) {
  std::vector<at::Tensor> first;
  for (const auto order : {simt::Order::kAscending, simt::Order::kDescending}) {
    for (const auto& output : outputs) output.fill_(NAN);
    simt::run(shape.grid, shape.block, shape.shared_bytes, order, [&] { kernel(arguments); });
    if (order == simt::Order::kAscending) {
      for (const auto& output : outputs) first.push_back(output.clone());
    } else {
      for (size_t i = 0; i < outputs.size(); ++i) {
        EXPECT_TRUE(at::allclose(outputs[i], first[i], 0, 0, /*equal_nan=*/true)) << "output " << i << " has a race";
      }
    }
  }
}

}  // namespace distill::kernels::cuda
