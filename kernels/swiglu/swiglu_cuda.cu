#include "kernels/swiglu/swiglu_kernels.cuh"

namespace distill::kernels::cuda {

template <typename T>
void launch_swiglu(const SwigluArguments<T>& arguments, cudaStream_t stream) {
  const LaunchShape shape = elementwise(arguments.tokens * arguments.size);
  swiglu_kernel<<<shape.grid, shape.block, 0, stream>>>(arguments);
}

template <typename T>
void launch_swiglu_backward(const SwigluBackwardArguments<T>& arguments, cudaStream_t stream) {
  const LaunchShape shape = elementwise(arguments.tokens * arguments.size);
  swiglu_backward_kernel<<<shape.grid, shape.block, 0, stream>>>(arguments);
}

template void launch_swiglu(const SwigluArguments<float>&, cudaStream_t);
template void launch_swiglu(const SwigluArguments<Bf16>&, cudaStream_t);
template void launch_swiglu_backward(const SwigluBackwardArguments<float>&, cudaStream_t);
template void launch_swiglu_backward(const SwigluBackwardArguments<Bf16>&, cudaStream_t);

}  // namespace distill::kernels::cuda
