#include "nn/recompute.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace distill::nn {
namespace {

using Layer = std::function<at::Tensor(const at::Tensor&)>;

struct Recompute : torch::autograd::Function<Recompute> {
  // `anchor` makes the result differentiable where x is not, since the layer's parameters may be.
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor&,
                            const Layer& layer) {
    context->save_for_backward({x});
    context->saved_data["layer"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(layer));
    return layer(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const at::Tensor x = context->get_saved_variables()[0].detach().requires_grad_();
    const auto holder = c10::static_intrusive_pointer_cast<Holder>(context->saved_data["layer"].toCapsule());
    const at::AutoGradMode with_gradients(true);
    holder->layer(x).backward(grads[0]);
    return {x.grad(), {}, {}};
  }

  struct Holder : torch::CustomClassHolder {
    explicit Holder(Layer from) : layer(std::move(from)) {}
    Layer layer;
  };
};

}  // namespace

at::Tensor recompute(const std::function<at::Tensor(const at::Tensor&)>& layer, const at::Tensor& x) {
  if (!at::GradMode::is_enabled()) return layer(x);
  return Recompute::apply(x, at::zeros({}).requires_grad_(), layer);
}

}  // namespace distill::nn
