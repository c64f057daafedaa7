#include "kernels/attention/paged_attention_cuda.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/cuda/stream.h"
#include "kernels/storage_type.h"

namespace distill::kernels {
namespace {

void write_cache_cuda(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& k, const at::Tensor& v,
                      const at::Tensor& slots) {
  if (slots.numel() == 0) return;
  const cuda::CurrentStream stream(keys);
  with_storage_type(keys, "write_cache", [&]<typename T>(T) {
    cuda::launch_write_cache<T>({.keys = static_cast<T*>(keys.mutable_data_ptr()),
                                 .values = static_cast<T*>(values.mutable_data_ptr()),
                                 .k = static_cast<const T*>(k.const_data_ptr()),
                                 .v = static_cast<const T*>(v.const_data_ptr()),
                                 .slots = slots.const_data_ptr<int64_t>(),
                                 .tokens = slots.size(0),
                                 .blocks = keys.size(0),
                                 .kv_heads = keys.size(1),
                                 .dim = keys.size(2),
                                 .value_dim = values.size(3),
                                 .block_size = keys.size(3),
                                 .k_stride = k.stride(0),
                                 .v_stride = v.stride(0)},
                                stream);
  });
  stream.check();
}

// Lengths are not checked here as on the CPU: that would wait for the GPU at every step.
at::Tensor paged_attention_cuda(const at::Tensor& q_in, const at::Tensor& keys, const at::Tensor& values,
                                const at::Tensor& sequence_offsets_in, const at::Tensor& block_table_in,
                                const at::Tensor& context_lengths_in, double scale, int64_t window) {
  const at::Tensor q = q_in.contiguous();
  const at::Tensor sequence_offsets = sequence_offsets_in.contiguous();
  const at::Tensor block_table = block_table_in.contiguous();
  const at::Tensor context_lengths = context_lengths_in.contiguous();
  const at::Tensor out = at::empty({q.size(0), q.size(1), values.size(3)}, q.options());
  if (out.numel() == 0) return out;
  const cuda::CurrentStream stream(q);
  with_storage_type(q, "paged_attention", [&]<typename T>(T) {
    cuda::launch_paged_attention<T>({.q = static_cast<const T*>(q.const_data_ptr()),
                                     .keys = static_cast<const T*>(keys.const_data_ptr()),
                                     .values = static_cast<const T*>(values.const_data_ptr()),
                                     .sequence_offsets = sequence_offsets.const_data_ptr<int32_t>(),
                                     .block_table = block_table.const_data_ptr<int32_t>(),
                                     .context_lengths = context_lengths.const_data_ptr<int32_t>(),
                                     .out = static_cast<T*>(out.mutable_data_ptr()),
                                     .tokens = q.size(0),
                                     .heads = q.size(1),
                                     .kv_heads = keys.size(1),
                                     .dim = q.size(2),
                                     .value_dim = values.size(3),
                                     .block_size = keys.size(3),
                                     .sequences = context_lengths.size(0),
                                     .max_blocks = block_table.size(1),
                                     .window = window,
                                     .scale = static_cast<float>(scale)},
                                    stream);
  });
  stream.check();
  return out;
}

TORCH_LIBRARY_IMPL(distill, CUDA, library) {
  library.impl("write_cache", write_cache_cuda);
  library.impl("paged_attention", paged_attention_cuda);
}

}  // namespace
}  // namespace distill::kernels
