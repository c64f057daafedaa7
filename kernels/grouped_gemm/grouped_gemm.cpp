#include "kernels/grouped_gemm/grouped_gemm.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>

namespace distill::kernels {
namespace {

TORCH_LIBRARY_FRAGMENT(distill, library) {
  library.def(
      "grouped_mlp(Tensor x, Tensor experts, Tensor gates, Tensor[] values, Tensor[] scales, int routed, "
      "Tensor? residual) -> Tensor");
}

}  // namespace

void ExpertWeights::add(const StoredWeight& gate, const StoredWeight& up, const StoredWeight& down) {
  for (const StoredWeight* weight : {&gate, &up, &down}) {
    values.push_back(weight->values);
    scales.push_back(weight->scales);
  }
}

void check_experts(const ExpertWeights& weights, int64_t hidden) {
  TORCH_CHECK(!weights.values.empty() && weights.values.size() % 3 == 0, "grouped_mlp: ", weights.values.size(),
              " weights are not three per expert");
  TORCH_CHECK(weights.scales.size() == weights.values.size(), "grouped_mlp: ", weights.values.size(), " weights have ",
              weights.scales.size(), " scales");
  TORCH_CHECK(weights.routed >= 0 && weights.routed <= weights.count(), "grouped_mlp: ", weights.routed, " of ",
              weights.count(), " experts are said to be routed to");
  for (size_t i = 0; i < weights.values.size(); ++i) {
    const at::Tensor& values = weights.values[i];
    check_stored_weight({.values = values, .scales = weights.scales[i]}, "grouped_mlp");
    const at::Tensor& gate = weights.values[i - i % 3];
    const bool is_down = i % 3 == 2;
    TORCH_CHECK((is_down || values.scalar_type() == gate.scalar_type()) &&
                    values.size(0) == (is_down ? hidden : gate.size(0)) &&
                    values.size(1) == (is_down ? gate.size(0) : hidden),
                "grouped_mlp: weight ", i % 3, " of expert ", i / 3, " is ", values.scalar_type(), " ", values.sizes(),
                " beside a gate of ", gate.scalar_type(), " ", gate.sizes(), " for hidden size ", hidden);
  }
}

at::Tensor grouped_mlp(const at::Tensor& x, const at::Tensor& experts, const at::Tensor& gates,
                       const ExpertWeights& weights, const at::Tensor& residual) {
  TORCH_CHECK(
      x.dim() == 2 && x.is_contiguous() && !weights.values.empty() && x.size(1) == weights.values.front().size(1) &&
          (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16),
      "grouped_mlp: x must be fp32 or bf16 [tokens, hidden] and contiguous, is ", x.scalar_type(), " ", x.sizes());
  TORCH_CHECK(experts.dim() == 2 && experts.size(0) == x.size(0) && experts.scalar_type() == at::kInt &&
                  experts.is_contiguous() && gates.sizes() == experts.sizes() && gates.scalar_type() == at::kFloat &&
                  gates.is_contiguous(),
              "grouped_mlp: experts ", experts.sizes(), " and gates ", gates.sizes(),
              " must be int32 and fp32 [tokens, k]");
  TORCH_CHECK(!residual.defined() || (residual.sizes() == x.sizes() && residual.scalar_type() == x.scalar_type() &&
                                      residual.is_contiguous()),
              "grouped_mlp: residual must be like x");
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("distill::grouped_mlp", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, at::TensorList,
                                               at::TensorList, int64_t, const std::optional<at::Tensor>&)>();
  return op.call(x, experts, gates, weights.values, weights.scales, weights.routed,
                 residual.defined() ? std::optional(residual) : std::nullopt);
}

}  // namespace distill::kernels
