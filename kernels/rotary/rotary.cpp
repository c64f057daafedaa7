#include "kernels/rotary/rotary.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace distill::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

TORCH_LIBRARY_FRAGMENT(distill, library) {
  library.def("rotary(Tensor x, Tensor cos, Tensor sin) -> Tensor");
  library.def("rotary_of_pairs(Tensor x, Tensor cos, Tensor sin) -> Tensor");
}

at::Tensor dispatch(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("distill::rotary", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
  return op.call(x, cos, sin);
}

// A rotation's transpose is the rotation by the opposite angle.
struct RotaryFunction : torch::autograd::Function<RotaryFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({cos, sin});
    return dispatch(x, cos, sin);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    return {dispatch(grads[0].contiguous(), saved[0], saved[1].neg()), {}, {}};
  }
};

TORCH_LIBRARY_IMPL(distill, Autograd, library) {
  library.impl("rotary", [](const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
    return RotaryFunction::apply(x, cos, sin);
  });
}

}  // namespace

at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  TORCH_CHECK(x.dim() == 3 && x.stride(2) == 1 && x.stride(1) == x.size(2),
              "rotary: x must be [tokens, heads, dim], is ", x.sizes());
  TORCH_CHECK(cos.dim() == 2 && cos.sizes() == sin.sizes() && cos.size(0) == x.size(0) && 2 * cos.size(1) <= x.size(2),
              "rotary: cos ", cos.sizes(), " and sin ", sin.sizes(), " do not fit x ", x.sizes());
  TORCH_CHECK(cos.scalar_type() == at::kFloat && sin.scalar_type() == at::kFloat, "rotary: cos and sin must be fp32");
  return dispatch(x, cos, sin);
}

at::Tensor rotary_of_pairs(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  TORCH_CHECK(x.dim() == 3 && x.stride(2) == 1, "rotary_of_pairs: x must be [tokens, heads, dim], is ", x.sizes());
  TORCH_CHECK(cos.dim() == 2 && cos.sizes() == sin.sizes() && cos.size(0) == x.size(0) && 2 * cos.size(1) == x.size(2),
              "rotary_of_pairs: cos ", cos.sizes(), " and sin ", sin.sizes(), " do not fit x ", x.sizes());
  TORCH_CHECK(cos.scalar_type() == at::kFloat && sin.scalar_type() == at::kFloat,
              "rotary_of_pairs: cos and sin must be fp32");
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("distill::rotary_of_pairs", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
  return op.call(x, cos, sin);
}

}  // namespace distill::kernels
