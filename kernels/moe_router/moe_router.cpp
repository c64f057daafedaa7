#include "kernels/moe_router/moe_router.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

namespace distill::kernels {
namespace {

TORCH_LIBRARY_FRAGMENT(distill, library) {
  library.def(
      "moe_router(Tensor logits, Tensor? bias, int experts_per_token, int scoring, int groups, int groups_per_token, "
      "int group_scoring, bool normalise, float scaling) -> (Tensor, Tensor)");
}

}  // namespace

Routing moe_router(const at::Tensor& logits, const at::Tensor& bias, const RouterOptions& options) {
  TORCH_CHECK(logits.dim() == 2 && logits.scalar_type() == at::kFloat && logits.is_contiguous(),
              "moe_router: logits must be fp32 [tokens, experts] and contiguous, are ", logits.scalar_type(), " ",
              logits.sizes());
  const int64_t experts = logits.size(1);
  TORCH_CHECK(!bias.defined() || (bias.scalar_type() == at::kFloat && bias.numel() == experts),
              "moe_router: bias must be fp32 [", experts, "]");
  TORCH_CHECK(options.groups > 0 && experts % options.groups == 0 && options.groups_per_token > 0 &&
                  options.groups_per_token <= options.groups,
              "moe_router: ", options.groups_per_token, " of ", options.groups, " groups of ", experts,
              " experts cannot be chosen");
  TORCH_CHECK(
      options.experts_per_token > 0 && options.experts_per_token <= experts / options.groups * options.groups_per_token,
      "moe_router: ", options.experts_per_token, " experts per token exceed the ",
      experts / options.groups * options.groups_per_token, " to choose from");
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("distill::moe_router", "")
          .typed<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const std::optional<at::Tensor>&, int64_t,
                                                    int64_t, int64_t, int64_t, int64_t, bool, double)>();
  const auto [chosen, gates] =
      op.call(logits, bias.defined() ? std::optional(bias) : std::nullopt, options.experts_per_token,
              static_cast<int64_t>(options.scoring), options.groups, options.groups_per_token,
              static_cast<int64_t>(options.group_scoring), options.normalise, options.scaling);
  return {.experts = chosen, .gates = gates};
}

}  // namespace distill::kernels
