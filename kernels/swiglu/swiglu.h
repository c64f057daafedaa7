// The gated activation of Llama-style MLPs (Shazeer, "GLU variants improve Transformer", 2020).
#pragma once

#include <ATen/core/Tensor.h>

namespace distill::kernels {

// y = silu(gate) * up with `gate_up` [tokens, 2 * size] = [gate | up], fp32 or bf16, contiguous; returns [tokens,
// size]. Computed in fp32 and rounded once. Differentiable.
at::Tensor swiglu(const at::Tensor& gate_up);

}  // namespace distill::kernels
