// Sums the gradients of all ranks while the backward pass is still computing them: c10d's Reducer, the engine under
// PyTorch's DistributedDataParallel (Li et al. 2020, arXiv 2006.15704, §3.2).
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "nn/rank_group.h"

namespace c10d {
class Reducer;
}

namespace distill {

class GradientReducer {
 public:
  // `parameters`: leaves that require gradients, the same on every rank.
  GradientReducer(std::vector<at::Tensor> parameters, const nn::RankGroup& ranks);
  ~GradientReducer();

  // A step's last backward pass on this rank: its gradients and those of the passes before are summed over the ranks.
  // Every rank does so once per step; `loss` may be zero(), where a rank has no data.
  void backward(const at::Tensor& loss);

  // A loss of 0 whose gradient is 0 for every parameter.
  at::Tensor zero() const;

 private:
  std::vector<at::Tensor> parameters_;
  std::unique_ptr<c10d::Reducer> reducer_;
};

}  // namespace distill
