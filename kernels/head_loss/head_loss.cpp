#include "kernels/head_loss/head_loss.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/head_loss/row_loss.h"

namespace distill::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

TORCH_LIBRARY_FRAGMENT(distill, library) {
  // Either the stored distributions or the teacher's tensors are undefined. `settings`: pack_settings(). `measures` are
  // HeadLoss's fp32 tensors from `divergence` on, `tops` the int64 ones. The last two results are the gradients of the
  // loss, empty where they are not asked for.
  library.def(
      "head_loss(Tensor hidden, Tensor weight, Tensor rows, Tensor labels, Tensor offsets, Tensor ids, Tensor weights, "
      "Tensor uncovered, Tensor teacher_hidden, Tensor teacher_weight, Tensor token_weights, int kind, int tail, "
      "float[] settings, bool gradients) -> (Tensor loss, Tensor measures, Tensor tops, Tensor grad_hidden, Tensor "
      "grad_weight)");
}

Tensors dispatch(const at::Tensor& hidden, const at::Tensor& weight, const HeadLossTargets& targets,
                 const HeadLossOptions& options, const at::Tensor& token_weights, bool gradients) {
  using T = const at::Tensor&;
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("distill::head_loss", "")
          .typed<Tensors(T, T, T, T, T, T, T, T, T, T, T, int64_t, int64_t, at::ArrayRef<double>, bool)>();
  return op.call(hidden, weight, targets.rows, targets.labels, targets.offsets, targets.ids, targets.weights,
                 targets.uncovered, targets.teacher_hidden, targets.teacher_weight, token_weights,
                 static_cast<int64_t>(options.kind), static_cast<int64_t>(options.tail), pack_settings(options),
                 gradients);
}

struct HeadLossFunction : torch::autograd::Function<HeadLossFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& weight,
                               const HeadLossTargets& targets, const HeadLossOptions& options,
                               const at::Tensor& token_weights) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [loss, measures, tops, grad_hidden, grad_weight] =
        dispatch(hidden, weight, targets, options, token_weights, /*gradients=*/true);
    context->save_for_backward({grad_hidden, grad_weight});
    context->mark_non_differentiable({measures, tops});
    return {loss, measures, tops};
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

void check_range(const at::Tensor& values, int64_t limit, const char* name) {
  if (values.numel() == 0) return;
  const auto [low, high] = values.aminmax();
  TORCH_CHECK(low.item<int64_t>() >= 0 && high.item<int64_t>() < limit, "head_loss: ", name, " from ",
              low.item<int64_t>(), " to ", high.item<int64_t>(), " do not lie in [0, ", limit, ")");
}

void check_stored(const HeadLossTargets& targets, int64_t vocab) {
  const int64_t count = targets.rows.numel();
  TORCH_CHECK(targets.offsets.scalar_type() == at::kLong && targets.ids.scalar_type() == at::kLong &&
                  targets.weights.scalar_type() == at::kFloat && targets.uncovered.scalar_type() == at::kFloat,
              "head_loss: offsets and ids must be int64, weights and uncovered fp32");
  TORCH_CHECK(targets.offsets.numel() == count + 1 && targets.uncovered.numel() == count &&
                  targets.ids.numel() == targets.weights.numel(),
              "head_loss: ", count, " rows, ", targets.offsets.numel(), " offsets, ", targets.uncovered.numel(),
              " uncovered, ", targets.ids.numel(), " ids and ", targets.weights.numel(),
              " weights do not fit together");
  if (count == 0) return;
  TORCH_CHECK(targets.offsets[0].item<int64_t>() == 0 && targets.offsets[-1].item<int64_t>() == targets.ids.numel() &&
                  targets.offsets.diff().min().item<int64_t>() >= 0,
              "head_loss: offsets must rise from 0 to the number of ids, ", targets.ids.numel());
  check_range(targets.ids, vocab, "ids");
}

void check_teacher(const HeadLossTargets& targets, int64_t vocab) {
  const at::Tensor& hidden = targets.teacher_hidden;
  const at::Tensor& weight = targets.teacher_weight;
  TORCH_CHECK(weight.defined() && hidden.dim() == 2 && weight.dim() == 2 && hidden.size(0) == targets.rows.numel() &&
                  hidden.size(1) == weight.size(1) && weight.size(0) > 0 && weight.size(0) <= vocab,
              "head_loss: the teacher's hidden ", hidden.sizes(), " and weight do not fit ", targets.rows.numel(),
              " targets and a vocabulary of at most ", vocab);
  TORCH_CHECK(!targets.offsets.defined(), "head_loss: targets both stored and of a teacher");
  for (const auto* tensor : {&hidden, &weight}) {
    TORCH_CHECK(tensor->scalar_type() == at::kFloat || tensor->scalar_type() == at::kBFloat16,
                "head_loss: expected a teacher in fp32 or bf16, found ", tensor->scalar_type());
  }
}

void check_targets(const HeadLossTargets& targets, int64_t tokens, int64_t vocab) {
  TORCH_CHECK(targets.rows.scalar_type() == at::kLong && targets.labels.scalar_type() == at::kLong &&
                  targets.labels.sizes() == targets.rows.sizes(),
              "head_loss: rows and labels must be int64 [targets], are ", targets.rows.sizes(), " and ",
              targets.labels.sizes());
  check_range(targets.rows, tokens, "rows");
  check_range(targets.labels.masked_fill(targets.labels == kIgnoredLabel, 0), vocab, "labels");
  targets.teacher_hidden.defined() ? check_teacher(targets, vocab) : check_stored(targets, vocab);
}

void check_options(const HeadLossOptions& options) {
  TORCH_CHECK(options.temperature > 0 && options.teacher_temperature > 0,
              "head_loss: temperatures must be above 0, are ", options.temperature, " and ",
              options.teacher_temperature);
  TORCH_CHECK(options.mix > 0 && options.mix < 1, "head_loss: mix must lie between 0 and 1, is ", options.mix);
  TORCH_CHECK(options.soft_cap >= 0, "head_loss: the soft cap must not be negative, is ", options.soft_cap);
}

HeadLoss as_result(const at::Tensor& loss, const at::Tensor& measures, const at::Tensor& tops) {
  return {.loss = loss,
          .divergence = measures[0],
          .kl = measures[1],
          .cross_entropy = measures[2],
          .confidence = measures[3],
          .factors = measures[4],
          .top_ids = tops[0],
          .teacher_top_ids = tops[1]};
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
  check_options(options);
  check_targets(targets, hidden.size(0), weight.size(0));
  const at::Tensor factors = token_weights.defined()
                                 ? token_weights.to(at::kFloat) * scale
                                 : at::full(targets.rows.sizes(), scale, targets.rows.options().dtype(at::kFloat));
  TORCH_CHECK(factors.numel() == targets.rows.numel(), "head_loss: ", factors.numel(), " token weights for ",
              targets.rows.numel(), " targets");
  HeadLoss result;
  if (at::GradMode::is_enabled() && (hidden.requires_grad() || weight.requires_grad())) {
    const auto results = HeadLossFunction::apply(hidden, weight, targets, options, factors);
    result = as_result(results[0], results[1], results[2]);
  } else {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto results = dispatch(hidden, weight, targets, options, factors, /*gradients=*/false);
    result = as_result(std::get<0>(results), std::get<1>(results), std::get<2>(results));
  }
  if (scale != 1) result.factors = result.factors / scale;
  return result;
}

}  // namespace distill::kernels
