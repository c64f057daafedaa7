#include "teacher/feed_forward.h"

#include <ATen/ATen.h>

#include <string>

#include "kernels/stored_linear/stored_linear.h"

namespace distill::teacher {

FeedForward::FeedForward(const DeepseekConfig& config, const DeepseekWeights& weights, int64_t layer,
                         at::ScalarType compute)
    : router_options_(config.moe.router) {
  const auto add_mlp = [&](const std::string& part) {
    const auto matrix = [&](const char* name) { return weights.matrix(layer_tensor(layer, part + name), compute); };
    experts_.add(matrix(".gate_proj.weight"), matrix(".up_proj.weight"), matrix(".down_proj.weight"));
  };
  if (config.has_experts(layer)) {
    // As stored also where that is fp32: a choice of experts should not hang on a rounding of the router's weights.
    const std::string name = layer_tensor(layer, "mlp.gate.weight");
    router_ = weights.matrix(name, at::kFloat);
    weights.check_finite(name, router_.values);
    if (config.moe.correction_bias) {
      correction_bias_ = weights.vector(layer_tensor(layer, "mlp.gate.e_score_correction_bias"));
    }
    experts_.routed = config.moe.routed_experts;
    for (int64_t e = 0; e < experts_.routed; ++e) add_mlp("mlp.experts." + std::to_string(e));
    if (config.moe.shared_experts > 0) add_mlp("mlp.shared_experts");
  } else {
    add_mlp("mlp");
  }
  kernels::check_experts(experts_, config.hidden_size);
}

kernels::Routing FeedForward::route(const at::Tensor& x) const {
  return kernels::moe_router(kernels::stored_linear(x, router_, {}, {}, at::kFloat), correction_bias_, router_options_);
}

at::Tensor FeedForward::forward(const at::Tensor& x, const at::Tensor& residual) const {
  const kernels::Routing routing = has_router() ? route(x)
                                                : kernels::Routing{.experts = at::empty({x.size(0), 0}, at::kInt),
                                                                   .gates = at::empty({x.size(0), 0}, at::kFloat)};
  return kernels::grouped_mlp(x, routing.experts, routing.gates, experts_, residual);
}

}  // namespace distill::teacher
