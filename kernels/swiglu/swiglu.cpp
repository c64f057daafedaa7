#include "kernels/swiglu/swiglu.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace distill::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

TORCH_LIBRARY_FRAGMENT(distill, library) {
  library.def("swiglu(Tensor gate_up) -> Tensor");
  library.def("swiglu_backward(Tensor grad, Tensor gate_up) -> Tensor");
}

at::Tensor dispatch_forward(const at::Tensor& gate_up) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("distill::swiglu", "").typed<at::Tensor(const at::Tensor&)>();
  return op.call(gate_up);
}

at::Tensor dispatch_backward(const at::Tensor& grad, const at::Tensor& gate_up) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("distill::swiglu_backward", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&)>();
  return op.call(grad, gate_up);
}

struct SwigluFunction : torch::autograd::Function<SwigluFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate_up) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({gate_up});
    return dispatch_forward(gate_up);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    return {dispatch_backward(grads[0].contiguous(), context->get_saved_variables()[0])};
  }
};

TORCH_LIBRARY_IMPL(distill, Autograd, library) {
  library.impl("swiglu", [](const at::Tensor& gate_up) { return SwigluFunction::apply(gate_up); });
}

}  // namespace

at::Tensor swiglu(const at::Tensor& gate_up) {
  TORCH_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0 && gate_up.is_contiguous(),
              "swiglu: gate_up must be [tokens, 2 * size] and contiguous, is ", gate_up.sizes());
  return dispatch_forward(gate_up);
}

}  // namespace distill::kernels
