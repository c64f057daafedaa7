// The smallest model that can learn something: the hidden state of a token comes from it and the token before it.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "nn/causal_lm.h"

namespace distill {

class TinyModel final : public nn::CausalLM {
 public:
  TinyModel(int64_t vocab, int64_t size, uint64_t seed, at::ScalarType compute = at::kFloat)
      : shape_{.vocab_size = vocab, .hidden_size = size, .num_layers = 1, .max_positions = 1 << 20}, compute_(compute) {
    const auto normal = [&](at::IntArrayRef sizes, uint64_t offset, double scale) {
      return (at::randn(sizes, at::detail::createCPUGenerator(seed + offset), at::kFloat) * scale).requires_grad_();
    };
    embedding_ = normal({vocab, size}, 0, 0.3);
    mixing_ = normal({size, size}, 1, 0.3);
    scale_ = at::ones({size}).requires_grad_();
  }

  std::function<void()> before_forward;  // called by each forward(), if set

  const nn::ModelShape& shape() const override { return shape_; }

  at::Tensor forward(const nn::PackedBatch& batch) override {
    if (before_forward) before_forward();
    const at::Tensor here = at::embedding(embedding_, batch.tokens);
    const at::Tensor before = at::roll(here, 1, 0) * (batch.positions > 0).unsqueeze(-1);
    const at::Tensor mixed = here + at::matmul(before, mixing_.t());
    return (at::tanh(mixed) * scale_).to(compute_);
  }
  at::Tensor forward(const nn::PackedBatch&, nn::KvCache&, const nn::CacheSlots&) override {
    core::fail("the tiny model has no cache");
  }
  at::Tensor logits(const at::Tensor& hidden) override { return at::matmul(hidden.to(at::kFloat), embedding_.t()); }
  at::Tensor head_weight() override { return embedding_; }
  std::unique_ptr<nn::KvCache> make_cache(int64_t, int64_t) const override {
    core::fail("the tiny model has no cache");
  }
  std::vector<std::pair<std::string, at::Tensor>> parameters() override {
    return {{"model.embed_tokens.weight", embedding_}, {"model.mixing.weight", mixing_}, {"model.norm.weight", scale_}};
  }

 private:
  nn::ModelShape shape_;
  at::ScalarType compute_;
  at::Tensor embedding_, mixing_, scale_;
};

}  // namespace distill
