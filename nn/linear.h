// How the weight of a projection is stored and multiplied with. Models only say which projections they have.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "kernels/packed_linear/block_weight.h"
#include "kernels/packed_linear/packed_linear.h"
#include "nn/model_options.h"

namespace distill::nn {

// y = x w^T + bias, where w may consist of several parts with the same inputs whose outputs lie side by side (q, k and
// v; gate and up), so that one product computes them all.
//   trainable  the parts stay as given (fp32 leaves) and are cast to the compute dtype in each forward
//   inference  one matrix in the compute dtype, packed for streaming (kernels/packed_linear)
class Linear {
 public:
  struct Part {
    at::Tensor weight{};  // [out, in], any floating dtype; or undefined, with the weight in `blocks`
    at::Tensor bias{};    // [out] or undefined, in all parts alike
    std::optional<kernels::BlockWeight> blocks{};
  };

  Linear() = default;
  Linear(std::vector<Part> parts, const ModelOptions& options);

  // x [tokens, in] in the compute dtype, contiguous; `residual` [tokens, out] likewise or undefined. Returns [tokens,
  // out] in the compute dtype.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& residual = {}) const;
  // The same without residual as fp32, not rounded to the compute dtype.
  at::Tensor forward_fp32(const at::Tensor& x) const;

  // Rows `ids` [tokens] int64 of the weight, [tokens, in] in the compute dtype: an embedding. With `tied`, where the
  // loss also depends on the weight as a projection, the gradient of the rows is sparse: it is added to the other one
  // in place, without a matrix of zeros around it.
  at::Tensor rows(const at::Tensor& ids, bool tied = false) const;
  // The whole weight [out, in]: the leaf where trainable, else a copy in the compute dtype. One part only.
  at::Tensor weight() const;

 private:
  at::Tensor joined_weight(at::ScalarType dtype) const;
  at::Tensor joined_bias(at::ScalarType dtype) const;
  at::Tensor multiply(const at::Tensor& x, at::ScalarType dtype) const;

  ModelOptions options_;
  std::vector<Part> parts_;       // trainable
  kernels::PackedWeight packed_;  // inference
  at::Tensor packed_bias_;        // fp32 or undefined
};

}  // namespace distill::nn
