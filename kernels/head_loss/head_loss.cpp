#include "kernels/head_loss/head_loss.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>

namespace distill::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

TORCH_LIBRARY_FRAGMENT(distill, library) {
  // The last two results are the gradients of the loss, empty where they are not asked for.
  library.def(
      "head_loss(Tensor hidden, Tensor weight, Tensor rows, Tensor labels, Tensor offsets, Tensor ids, Tensor weights, "
      "Tensor uncovered, Tensor token_weights, float divergence, float cross_entropy, float temperature, int tail, "
      "bool gradients) -> (Tensor loss, Tensor divergence, Tensor cross_entropy, Tensor top_ids, Tensor grad_hidden, "
      "Tensor grad_weight)");
}

Tensors dispatch(const at::Tensor& hidden, const at::Tensor& weight, const HeadLossTargets& targets,
                 const HeadLossOptions& options, const at::Tensor& token_weights, bool gradients) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("distill::head_loss", "")
                             .typed<Tensors(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                            const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                            const at::Tensor&, double, double, double, int64_t, bool)>();
  return op.call(hidden, weight, targets.rows, targets.labels, targets.offsets, targets.ids, targets.weights,
                 targets.uncovered, token_weights, options.divergence, options.cross_entropy, options.temperature,
                 static_cast<int64_t>(options.tail), gradients);
}

struct HeadLossFunction : torch::autograd::Function<HeadLossFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& weight,
                               const HeadLossTargets& targets, const HeadLossOptions& options,
                               const at::Tensor& token_weights) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [loss, divergence, cross_entropy, top_ids, grad_hidden, grad_weight] =
        dispatch(hidden, weight, targets, options, token_weights, /*gradients=*/true);
    context->save_for_backward({grad_hidden, grad_weight});
    context->mark_non_differentiable({divergence, cross_entropy, top_ids});
    return {loss, divergence, cross_entropy, top_ids};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    // The trainer puts its factors into `scale` and starts from 1, which spares a pass over the weight's gradient.
    const bool is_one = grads[0].is_cpu() && grads[0].item<float>() == 1.0f;
    const auto scaled = [&](const at::Tensor& gradient) {
      return is_one ? gradient : gradient * grads[0].to(gradient.scalar_type());
    };
    return {scaled(saved[0]), scaled(saved[1]), {}, {}, {}};
  }
};

void check_targets(const HeadLossTargets& targets, int64_t tokens, int64_t vocab) {
  const int64_t count = targets.rows.numel();
  TORCH_CHECK(targets.rows.scalar_type() == at::kLong && targets.labels.scalar_type() == at::kLong &&
                  targets.offsets.scalar_type() == at::kLong && targets.ids.scalar_type() == at::kLong &&
                  targets.weights.scalar_type() == at::kFloat && targets.uncovered.scalar_type() == at::kFloat,
              "head_loss: rows, labels, offsets and ids must be int64, weights and uncovered fp32");
  TORCH_CHECK(targets.labels.numel() == count && targets.offsets.numel() == count + 1 &&
                  targets.uncovered.numel() == count && targets.ids.numel() == targets.weights.numel(),
              "head_loss: ", count, " rows, ", targets.labels.numel(), " labels, ", targets.offsets.numel(),
              " offsets, ", targets.uncovered.numel(), " uncovered, ", targets.ids.numel(), " ids and ",
              targets.weights.numel(), " weights do not fit together");
  if (count == 0) return;
  TORCH_CHECK(targets.offsets[0].item<int64_t>() == 0 && targets.offsets[-1].item<int64_t>() == targets.ids.numel() &&
                  targets.offsets.diff().min().item<int64_t>() >= 0,
              "head_loss: offsets must rise from 0 to the number of ids, ", targets.ids.numel());
  const auto check_range = [](const at::Tensor& values, int64_t limit, const char* name) {
    if (values.numel() == 0) return;
    const auto [low, high] = values.aminmax();
    TORCH_CHECK(low.item<int64_t>() >= 0 && high.item<int64_t>() < limit, "head_loss: ", name, " from ",
                low.item<int64_t>(), " to ", high.item<int64_t>(), " do not lie in [0, ", limit, ")");
  };
  check_range(targets.rows, tokens, "rows");
  check_range(targets.labels, vocab, "labels");
  check_range(targets.ids, vocab, "ids");
}

}  // namespace

HeadLoss head_loss(const at::Tensor& hidden, const at::Tensor& weight, const HeadLossTargets& targets,
                   const HeadLossOptions& options, double scale, const at::Tensor& token_weights) {
  TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1), "head_loss: hidden ",
              hidden.sizes(), " does not fit weight ", weight.sizes());
  for (const auto* tensor : {&hidden, &weight}) {
    TORCH_CHECK(tensor->scalar_type() == at::kFloat || tensor->scalar_type() == at::kBFloat16,
                "head_loss: expected fp32 or bf16, found ", tensor->scalar_type());
  }
  TORCH_CHECK(options.temperature > 0, "head_loss: the temperature must be above 0, is ", options.temperature);
  check_targets(targets, hidden.size(0), weight.size(0));
  const at::Tensor factors =
      token_weights.defined() ? token_weights.to(at::kFloat) * scale : at::full_like(targets.uncovered, scale);
  TORCH_CHECK(factors.numel() == targets.rows.numel(), "head_loss: ", factors.numel(), " token weights for ",
              targets.rows.numel(), " targets");
  if (at::GradMode::is_enabled() && (hidden.requires_grad() || weight.requires_grad())) {
    const auto results = HeadLossFunction::apply(hidden, weight, targets, options, factors);
    return {.loss = results[0], .divergence = results[1], .cross_entropy = results[2], .top_ids = results[3]};
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  auto [loss, divergence, cross_entropy, top_ids, grad_hidden, grad_weight] =
      dispatch(hidden, weight, targets, options, factors, /*gradients=*/false);
  return {.loss = loss, .divergence = divergence, .cross_entropy = cross_entropy, .top_ids = top_ids};
}

}  // namespace distill::kernels
