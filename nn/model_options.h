// How a model's weights are held once loaded.
#pragma once

#include <c10/core/ScalarType.h>

namespace distill::nn {

struct ModelOptions {
  // What products are computed in, and how hidden states travel: fp32 or bf16.
  at::ScalarType compute = at::kBFloat16;
  // Trainable: fp32 master weights that require gradients, cast to `compute` where they are used. Otherwise weights are
  // held once, in the layout that runs fastest, and the result is not differentiable.
  bool trainable = false;
  // Caches hold latents in FP8 with scales per token (kernels/mla_attention/fp8_entries.h). For models with latent
  // attention only; otherwise entries are in `compute`.
  bool fp8_cache = false;
  // Trainable: each layer is computed again in the backward pass instead of keeping its activations.
  bool recompute = false;
};

}  // namespace distill::nn
