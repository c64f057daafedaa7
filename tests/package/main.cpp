#include <ATen/ATen.h>

#include <cstdio>

#include "data/target_spec.h"
#include "kernels/rms_norm/rms_norm.h"
#include "nn/causal_lm.h"

int main() {
  const auto spec = distill::data::TargetSpec::parse("topk:8");
  const auto batch = distill::nn::PackedBatch::from_sequences({{1, 2, 3}, {4}});
  const auto y = distill::kernels::rms_norm(at::full({1, 4}, 2.0f), at::ones({4}), 0.0);
  const bool right = spec.exact == 8 && batch.tokens.numel() == 4 && at::allclose(y, at::ones({1, 4}));
  std::puts(right ? "distill works" : "distill computes something else");
  return right ? 0 : 1;
}
