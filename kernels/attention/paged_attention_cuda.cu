#include "kernels/attention/paged_attention_kernels.cuh"

namespace distill::kernels::cuda {

template <typename T>
void launch_write_cache(const WriteCacheArguments<T>& arguments, cudaStream_t stream) {
  const LaunchShape shape = write_cache_shape(arguments);
  write_cache_kernel<<<shape.grid, shape.block, 0, stream>>>(arguments);
}

template <typename T>
void launch_paged_attention(const PagedAttentionArguments<T>& arguments, cudaStream_t stream) {
  const LaunchShape shape = paged_attention_shape(arguments);
  paged_attention_kernel<<<shape.grid, shape.block, shape.shared_bytes, stream>>>(arguments);
}

template void launch_write_cache(const WriteCacheArguments<float>&, cudaStream_t);
template void launch_write_cache(const WriteCacheArguments<Bf16>&, cudaStream_t);
template void launch_paged_attention(const PagedAttentionArguments<float>&, cudaStream_t);
template void launch_paged_attention(const PagedAttentionArguments<Bf16>&, cudaStream_t);

}  // namespace distill::kernels::cuda
