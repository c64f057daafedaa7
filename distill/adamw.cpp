#include "distill/adamw.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "core/error.h"

namespace distill {
namespace {

// The arguments of one call of the fused kernel: parameters that share a weight decay.
struct Group {
  std::vector<at::Tensor> parameters, gradients, averages, square_averages, steps;
};

}  // namespace

AdamW::AdamW(data::NamedTensors parameters, const AdamWOptions& options)
    : parameters_(std::move(parameters)), options_(options) {
  for (const auto& [name, parameter] : parameters_) {
    core::check(parameter.scalar_type() == at::kFloat && parameter.requires_grad(),
                "parameter '{}' is no trainable fp32 tensor", name);
    averages_.push_back(at::zeros_like(parameter.detach()));
    square_averages_.push_back(at::zeros_like(parameter.detach()));
    steps_.push_back(at::zeros({}, parameter.options().requires_grad(false)));
  }
}

double AdamW::gradient_norm() const {
  std::vector<at::Tensor> gradients;
  for (const auto& [name, parameter] : parameters_) {
    if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  }
  if (gradients.empty()) return 0;
  return at::stack(at::_foreach_norm(gradients)).to(at::kDouble).norm().item<double>();
}

void AdamW::step(double learning_rate, double gradient_divisor) {
  const c10::NoGradGuard no_grad;
  Group decayed;
  Group plain;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor& parameter = parameters_[i].second;
    if (!parameter.grad().defined()) continue;
    Group& group = parameter.dim() > 1 ? decayed : plain;
    group.parameters.push_back(parameter);
    group.gradients.push_back(parameter.grad().contiguous());
    group.averages.push_back(averages_[i]);
    group.square_averages.push_back(square_averages_[i]);
    group.steps.push_back(steps_[i]);
  }
  const auto divisor = gradient_divisor == 1.0 ? std::optional<at::Tensor>()
                                               : std::optional(at::scalar_tensor(gradient_divisor, at::kFloat));
  for (auto* group : {&decayed, &plain}) {
    if (group->parameters.empty()) continue;
    at::_foreach_add_(group->steps, 1);
    at::_fused_adamw_(group->parameters, group->gradients, group->averages, group->square_averages,
                      /*max_exp_avg_sqs=*/{}, group->steps, learning_rate, options_.beta1, options_.beta2,
                      group == &decayed ? options_.weight_decay : 0.0, options_.epsilon, /*amsgrad=*/false,
                      /*maximize=*/false, /*grad_scale=*/divisor, /*found_inf=*/std::nullopt);
  }
}

void AdamW::zero_gradients() {
  for (const auto& [name, parameter] : parameters_) parameter.mutable_grad() = at::Tensor();
}

data::NamedTensors AdamW::state() const {
  data::NamedTensors state;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    state.emplace_back("exp_avg." + parameters_[i].first, averages_[i]);
    state.emplace_back("exp_avg_sq." + parameters_[i].first, square_averages_[i]);
  }
  state.emplace_back("steps", at::stack(steps_));
  return state;
}

void AdamW::set_state(const data::NamedTensors& state) {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    averages_[i].copy_(state[2 * i].second);
    square_averages_[i].copy_(state[2 * i + 1].second);
    steps_[i].copy_(state.back().second[static_cast<int64_t>(i)]);
  }
}

void AdamW::load_state(const data::WeightSource& source) {
  const auto load = [&](const std::string& name, const at::Tensor& into) {
    core::check(source.find(name) != nullptr, "{}: tensor '{}' is missing", source.location(), name);
    const at::Tensor stored = source.load(name);
    core::check(stored.sizes() == into.sizes() && stored.scalar_type() == into.scalar_type(),
                "{}: tensor '{}' is {} [{}], expected {} [{}]", source.location(), name,
                c10::toString(stored.scalar_type()), fmt::join(stored.sizes(), ", "), c10::toString(into.scalar_type()),
                fmt::join(into.sizes(), ", "));
    into.copy_(stored);
  };
  for (size_t i = 0; i < parameters_.size(); ++i) {
    load("exp_avg." + parameters_[i].first, averages_[i]);
    load("exp_avg_sq." + parameters_[i].first, square_averages_[i]);
  }
  const at::Tensor steps = at::empty({static_cast<int64_t>(steps_.size())}, at::kFloat);
  load("steps", steps);
  for (size_t i = 0; i < steps_.size(); ++i) steps_[i].copy_(steps[static_cast<int64_t>(i)]);
}

}  // namespace distill
