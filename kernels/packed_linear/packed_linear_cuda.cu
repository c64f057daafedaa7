#include "kernels/packed_linear/packed_linear_kernels.cuh"

namespace distill::kernels::cuda {

template <typename T, typename V>
void launch_finish_linear(const FinishLinearArguments<T, V>& arguments, cudaStream_t stream) {
  const LaunchShape shape = elementwise(arguments.tokens * arguments.out);
  finish_linear_kernel<<<shape.grid, shape.block, 0, stream>>>(arguments);
}

template void launch_finish_linear(const FinishLinearArguments<float, float>&, cudaStream_t);
template void launch_finish_linear(const FinishLinearArguments<float, Bf16>&, cudaStream_t);
template void launch_finish_linear(const FinishLinearArguments<Bf16, Bf16>&, cudaStream_t);

}  // namespace distill::kernels::cuda
