#include "kernels/rotary/rotary_kernels.cuh"

namespace distill::kernels::cuda {

template <typename T>
void launch_rotary(const RotaryArguments<T>& arguments, cudaStream_t stream) {
  const LaunchShape shape = elementwise(arguments.work());
  rotary_kernel<<<shape.grid, shape.block, 0, stream>>>(arguments);
}

template void launch_rotary(const RotaryArguments<float>&, cudaStream_t);
template void launch_rotary(const RotaryArguments<Bf16>&, cudaStream_t);

}  // namespace distill::kernels::cuda
