#include "kernels/rms_norm/rms_norm_kernels.cuh"

namespace distill::kernels::cuda {

template <typename T>
void launch_rms_norm(const RmsNormArguments<T>& arguments, cudaStream_t stream) {
  const LaunchShape shape = rms_norm_shape(arguments);
  rms_norm_kernel<<<shape.grid, shape.block, 0, stream>>>(arguments);
}

template <typename T>
void launch_rms_norm_backward(const RmsNormBackwardArguments<T>& arguments, cudaStream_t stream) {
  const LaunchShape shape = rms_norm_backward_shape(arguments);
  rms_norm_backward_kernel<<<shape.grid, shape.block, 0, stream>>>(arguments);
}

template void launch_rms_norm(const RmsNormArguments<float>&, cudaStream_t);
template void launch_rms_norm(const RmsNormArguments<Bf16>&, cudaStream_t);
template void launch_rms_norm_backward(const RmsNormBackwardArguments<float>&, cudaStream_t);
template void launch_rms_norm_backward(const RmsNormBackwardArguments<Bf16>&, cudaStream_t);

}  // namespace distill::kernels::cuda
