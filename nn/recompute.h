// Trades time for memory: a part of a model whose activations are computed again in the backward pass instead of being
// kept (Chen et al. 2016, arXiv 1604.06174).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace distill::nn {

// layer(x), differentiable in x and in whatever parameters the layer uses; of what the layer computes, nothing is kept
// but x. The layer must give the same result whenever it is called, and outlive the backward pass.
at::Tensor recompute(const std::function<at::Tensor(const at::Tensor&)>& layer, const at::Tensor& x);

}  // namespace distill::nn
