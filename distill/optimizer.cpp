#include "distill/optimizer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "core/error.h"
#include "core/names.h"
#include "distill/fair_shares.h"
#include "distill/muon.h"

namespace distill {
namespace {

constexpr std::array<std::string_view, 2> kKindNames{"adamw", "muon"};

// The arguments of one call of the fused kernel: parameters that share a learning rate and a weight decay.
struct FusedGroup {
  std::vector<at::Tensor> parameters, gradients, averages, square_averages, steps;
};

bool is_inner_matrix(std::string_view name, const at::Tensor& parameter) {
  return parameter.dim() == 2 && !name.ends_with("embed_tokens.weight") && !name.ends_with("lm_head.weight") &&
         !name.starts_with("projector.");
}

at::Tensor no_moments(const at::Tensor& parameter) {
  return at::zeros(parameter.sizes(), parameter.options().requires_grad(false));
}

}  // namespace

std::string_view to_string(OptimizerKind kind) {
  return kKindNames[static_cast<size_t>(kind)];
}

OptimizerKind parse_optimizer(std::string_view name) {
  return core::parse_name<OptimizerKind>(kKindNames, name);
}

Optimizer::Optimizer(const data::NamedTensors& parameters, const OptimizerOptions& options, const nn::RankGroup* ranks)
    : options_(options), ranks_(options.shard ? ranks : nullptr) {
  std::vector<int64_t> matches(options.groups.size());
  for (const auto& [name, parameter] : parameters) {
    core::check(parameter.scalar_type() == at::kFloat && parameter.is_leaf(), "parameter '{}' is no fp32 leaf", name);
    ParameterGroup group;
    for (size_t i = 0; i < options.groups.size(); ++i) {
      if (::fnmatch(options.groups[i].pattern.c_str(), name.c_str(), 0) != 0) continue;
      ++matches[i];
      if (group.pattern.empty()) group = options.groups[i];
    }
    parameter.set_requires_grad(!group.frozen);
    if (group.frozen) continue;
    trained_.emplace_back(name, parameter);
    Slot slot{.name = name, .parameter = parameter};
    slot.muon = options.kind == OptimizerKind::kMuon && is_inner_matrix(name, parameter);
    slot.learning_rate = group.learning_rate;
    slot.weight_decay = parameter.dim() > 1 ? options.weight_decay * group.weight_decay : 0.0;
    slots_.push_back(std::move(slot));
  }
  for (size_t i = 0; i < matches.size(); ++i) {
    if (matches[i] == 0) core::fail_usage("optimizer.groups: no parameter matches '{}'", options.groups[i].pattern);
  }
  if (slots_.empty()) core::fail_usage("optimizer.groups: every parameter is frozen");
  share_out();
  for (Slot& slot : slots_) {
    if (owns(slot)) slot.first = no_moments(slot.parameter);
    if (owns(slot) && !slot.muon) slot.second = no_moments(slot.parameter);
    if (!slot.muon) slot.steps = at::zeros({}, at::kFloat);
    if (options.average > 0) slot.average = slot.parameter.detach().clone();
  }
}

void Optimizer::share_out() {
  if (ranks_ == nullptr) return;
  std::vector<int64_t> sizes;
  for (const Slot& slot : slots_) sizes.push_back(slot.parameter.numel());
  const std::vector<int> owners = fair_shares(sizes, ranks_->size());
  for (size_t i = 0; i < slots_.size(); ++i) slots_[i].owner = owners[i];
}

bool Optimizer::owns(const Slot& slot) const {
  return ranks_ == nullptr || slot.owner == ranks_->rank();
}

double Optimizer::gradient_norm() const {
  std::vector<at::Tensor> gradients;
  for (const auto& [name, parameter] : trained_) {
    if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  }
  if (gradients.empty()) return 0;
  return at::stack(at::_foreach_norm(gradients)).to(at::kDouble).norm().item<double>();
}

void Optimizer::step(double learning_rate, double gradient_divisor) {
  const c10::NoGradGuard no_grad;
  std::map<std::pair<double, double>, FusedGroup> fused;  // by learning rate and weight decay
  for (Slot& slot : slots_) {
    const at::Tensor& parameter = slot.parameter;
    if (!parameter.grad().defined()) continue;
    if (!slot.muon) slot.steps.add_(1);
    if (!owns(slot)) continue;
    const double rate = learning_rate * slot.learning_rate;
    if (slot.muon) {
      muon_update(parameter, parameter.grad(), slot.first,
                  {.learning_rate = rate,
                   .momentum = options_.momentum,
                   .weight_decay = slot.weight_decay,
                   .gradient_divisor = gradient_divisor});
      continue;
    }
    FusedGroup& group = fused[{rate, slot.weight_decay}];
    group.parameters.push_back(parameter);
    group.gradients.push_back(parameter.grad().contiguous());
    group.averages.push_back(slot.first);
    group.square_averages.push_back(slot.second);
    group.steps.push_back(slot.steps);
  }
  const auto divisor = gradient_divisor == 1.0 ? std::optional<at::Tensor>()
                                               : std::optional(at::scalar_tensor(gradient_divisor, at::kFloat));
  for (auto& [key, group] : fused) {
    at::_fused_adamw_(group.parameters, group.gradients, group.averages, group.square_averages,
                      /*max_exp_avg_sqs=*/{}, group.steps, key.first, options_.beta1, options_.beta2, key.second,
                      options_.epsilon, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/divisor,
                      /*found_inf=*/std::nullopt);
  }
  if (ranks_ != nullptr) {
    for (Slot& slot : slots_) {
      at::Tensor values = slot.parameter.detach();
      ranks_->broadcast(values, slot.owner);
    }
  }
}

void Optimizer::update_averages(int64_t step) {
  if (!averages()) return;
  const c10::NoGradGuard no_grad;
  const double decay = std::min(options_.average, static_cast<double>(1 + step) / static_cast<double>(10 + step));
  for (Slot& slot : slots_) slot.average.lerp_(slot.parameter.detach(), 1 - decay);
}

void Optimizer::zero_gradients() {
  for (const auto& [name, parameter] : trained_) parameter.mutable_grad() = at::Tensor();
}

void Optimizer::swap_averages() {
  const c10::NoGradGuard no_grad;
  for (Slot& slot : slots_) {
    if (!slot.average.defined()) continue;
    const at::Tensor weights = slot.parameter.detach().clone();
    slot.parameter.detach().copy_(slot.average);
    slot.average = weights;
  }
}

data::NamedTensors Optimizer::averaged(const data::NamedTensors& weights) const {
  data::NamedTensors result = weights;
  for (auto& [name, tensor] : result) {
    const auto slot = std::ranges::find(slots_, name, &Slot::name);
    if (slot != slots_.end() && slot->average.defined()) tensor = slot->average;
  }
  return result;
}

std::vector<Optimizer::StateTensor> Optimizer::state_tensors() const {
  std::vector<StateTensor> tensors;
  for (const Slot& slot : slots_) {
    const auto add = [&](std::string_view prefix, const at::Tensor& tensor) {
      tensors.push_back({fmt::format("{}.{}", prefix, slot.name), tensor, slot.parameter.sizes(), slot.owner});
    };
    if (slot.muon) {
      add("momentum", slot.first);
    } else {
      add("exp_avg", slot.first);
      add("exp_avg_sq", slot.second);
    }
  }
  return tensors;
}

data::NamedTensors Optimizer::state() const {
  const c10::NoGradGuard no_grad;
  data::NamedTensors state;
  const bool keeps = ranks_ == nullptr || ranks_->rank() == 0;
  for (const StateTensor& one : state_tensors()) {
    at::Tensor tensor = one.tensor;
    if (ranks_ != nullptr) {
      if (!tensor.defined()) tensor = at::empty(one.sizes, at::kFloat);
      ranks_->broadcast(tensor, one.owner);
    }
    if (keeps) state.emplace_back(one.name, tensor);
  }
  if (!keeps) return {};
  std::vector<at::Tensor> steps;
  for (const Slot& slot : slots_) {
    if (averages()) state.emplace_back("weight." + slot.name, slot.parameter.detach());
    if (!slot.muon) steps.push_back(slot.steps);
  }
  if (!steps.empty()) state.emplace_back("steps", at::stack(steps));
  return state;
}

data::NamedTensors Optimizer::read_state(const data::WeightSource& source) const {
  data::NamedTensors state;
  const auto read = [&](const std::string& name, at::IntArrayRef sizes) {
    core::check(source.find(name) != nullptr, "{}: tensor '{}' is missing", source.location(), name);
    const at::Tensor stored = source.load(name);
    core::check(stored.sizes() == sizes && stored.scalar_type() == at::kFloat,
                "{}: tensor '{}' is {} [{}], expected Float [{}]", source.location(), name,
                c10::toString(stored.scalar_type()), fmt::join(stored.sizes(), ", "), fmt::join(sizes, ", "));
    state.emplace_back(name, stored);
  };
  for (const StateTensor& one : state_tensors()) read(one.name, one.sizes);
  int64_t counted = 0;
  for (const Slot& slot : slots_) {
    if (averages()) read("weight." + slot.name, slot.parameter.sizes());
    if (!slot.muon) ++counted;
  }
  if (counted > 0) read("steps", {counted});
  return state;
}

void Optimizer::set_state(const data::NamedTensors& state, const nn::RankGroup* ranks) {
  const c10::NoGradGuard no_grad;
  for (Slot& slot : slots_) {
    if (slot.average.defined()) slot.average.copy_(slot.parameter.detach());
  }
  // Every rank walks through the same tensors; rank 0 has their values.
  const auto take = [&](const std::string& name, const at::Tensor& into, at::IntArrayRef sizes) {
    at::Tensor values;
    const auto found = std::ranges::find(state, name, &std::pair<std::string, at::Tensor>::first);
    if (found != state.end()) values = found->second.contiguous();
    if (ranks != nullptr) {
      if (!values.defined()) values = at::empty(sizes, at::kFloat);
      ranks->broadcast(values);
    }
    if (into.defined()) into.copy_(values);
  };
  at::Tensor has_state = at::scalar_tensor(state.empty() ? 0 : 1, at::kLong);
  if (ranks != nullptr) ranks->broadcast(has_state);
  if (has_state.item<int64_t>() == 0) {
    for (Slot& slot : slots_) {
      for (const at::Tensor& tensor : {slot.first, slot.second, slot.steps}) {
        if (tensor.defined()) tensor.zero_();
      }
    }
    return;
  }
  for (const StateTensor& one : state_tensors()) take(one.name, one.tensor, one.sizes);
  std::vector<Slot*> counted;
  for (Slot& slot : slots_) {
    if (averages()) take("weight." + slot.name, slot.parameter.detach(), slot.parameter.sizes());
    if (!slot.muon) counted.push_back(&slot);
  }
  if (counted.empty()) return;
  const at::Tensor steps = at::empty({static_cast<int64_t>(counted.size())}, at::kFloat);
  take("steps", steps, steps.sizes());
  for (size_t i = 0; i < counted.size(); ++i) counted[i]->steps.copy_(steps[static_cast<int64_t>(i)]);
}

}  // namespace distill
