// Muon: the momentum of a matrix, made orthogonal, as its update (Jordan et al. 2024,
// kellerjordan.github.io/posts/muon).
#pragma once

#include <ATen/core/Tensor.h>

namespace distill {

// Nearly U V^T for the singular value decomposition x = U S V^T, [rows, columns] fp32: singular values end up between
// about 0.7 and 1.2. Five steps of the Newton-Schulz iteration X <- a X + b (X X^T) X + c (X X^T)^2 X from X =
// x / |x|, with Jordan's coefficients.
at::Tensor orthogonalise(const at::Tensor& x);

struct MuonStep {
  double learning_rate;
  double momentum;
  double weight_decay;
  double gradient_divisor;
};

// momentum_buffer <- momentum * momentum_buffer + gradient; with Nesterov's g + momentum * momentum_buffer,
//   parameter <- parameter - learning_rate (0.2 sqrt(max(rows, columns)) orthogonalise(...) + weight_decay parameter).
// The factor gives updates the size of AdamW's, so that both share a learning rate (Moonlight, Liu et al. 2025,
// arXiv 2502.16982, eq. 4).
void muon_update(const at::Tensor& parameter, const at::Tensor& gradient, const at::Tensor& momentum_buffer,
                 const MuonStep& step);

}  // namespace distill
