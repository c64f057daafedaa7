#include "distill/muon.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace distill {

at::Tensor orthogonalise(const at::Tensor& x) {
  constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;
  constexpr int kSteps = 5;
  const bool tall = x.size(0) > x.size(1);  // the smaller Gram matrix costs less
  at::Tensor y = tall ? x.t() : x;
  y = y / (y.norm() + 1e-7);
  for (int i = 0; i < kSteps; ++i) {
    const at::Tensor gram = y.matmul(y.t());
    const at::Tensor polynomial = at::addmm(gram, gram, gram, kB, kC);
    y = at::addmm(y, polynomial, y, kA);
  }
  return tall ? y.t() : y;
}

void muon_update(const at::Tensor& parameter, const at::Tensor& gradient, const at::Tensor& momentum_buffer,
                 const MuonStep& step) {
  const at::Tensor g = step.gradient_divisor == 1 ? gradient : gradient / step.gradient_divisor;
  momentum_buffer.mul_(step.momentum).add_(g);
  const at::Tensor update = orthogonalise(g + step.momentum * momentum_buffer);
  const double size = 0.2 * std::sqrt(static_cast<double>(std::max(parameter.size(0), parameter.size(1))));
  parameter.mul_(1 - step.learning_rate * step.weight_decay).add_(update, -step.learning_rate * size);
}

}  // namespace distill
