#include "kernels/attention/paged_attention.h"

#include <ATen/ATen.h>
#include <torch/library.h>

namespace distill::kernels {
namespace {

TORCH_LIBRARY_FRAGMENT(distill, library) {
  library.def("write_cache(Tensor(a!) keys, Tensor(b!) values, Tensor k, Tensor v, Tensor slots) -> ()");
  library.def(
      "paged_attention(Tensor q, Tensor keys, Tensor values, Tensor sequence_offsets, Tensor block_table, "
      "Tensor context_lengths, float scale, int window) -> Tensor");
}

}  // namespace

void write_cache(const PagedKeysValues& cache, const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots) {
  TORCH_CHECK(k.dim() == 3 && v.dim() == 3 && k.size(1) == cache.keys.size(1) && k.size(2) == cache.keys.size(2) &&
                  v.size(2) == cache.values.size(3),
              "write_cache: k ", k.sizes(), " and v ", v.sizes(), " do not fit a cache of ", cache.keys.sizes());
  TORCH_CHECK(k.scalar_type() == cache.keys.scalar_type(), "write_cache: k is ", k.scalar_type(), ", the cache ",
              cache.keys.scalar_type());
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("distill::write_cache", "")
          .typed<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
  op.call(cache.keys, cache.values, k, v, slots);
}

at::Tensor paged_attention(const at::Tensor& q, const PagedKeysValues& cache, const PagedSequences& sequences,
                           double scale, int64_t window) {
  TORCH_CHECK(q.dim() == 3 && q.size(2) == cache.keys.size(2) && q.size(1) % cache.keys.size(1) == 0,
              "paged_attention: q ", q.sizes(), " does not fit a cache of ", cache.keys.sizes());
  TORCH_CHECK(q.scalar_type() == cache.keys.scalar_type(), "paged_attention: q is ", q.scalar_type(), ", the cache ",
              cache.keys.scalar_type());
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("distill::paged_attention", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                            const at::Tensor&, const at::Tensor&, double, int64_t)>();
  return op.call(q, cache.keys, cache.values, sequences.sequence_offsets, sequences.block_table,
                 sequences.context_lengths, scale, window);
}

}  // namespace distill::kernels
