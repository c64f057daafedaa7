#include "kernels/mla_attention/mla_attention.h"

#include <ATen/ATen.h>
#include <torch/library.h>

namespace distill::kernels {
namespace {

TORCH_LIBRARY_FRAGMENT(distill, library) {
  library.def("write_latents(Tensor(a!) entries, Tensor latent, Tensor key, Tensor slots) -> ()");
  library.def(
      "mla_attention(Tensor q, Tensor entries, Tensor sequence_offsets, Tensor block_table, Tensor context_lengths, "
      "int rank, float scale) -> Tensor");
}

void check_entries(const at::Tensor& entries, const char* operation) {
  TORCH_CHECK(entries.dim() == 3 && entries.is_contiguous() &&
                  (entries.scalar_type() == at::kFloat || entries.scalar_type() == at::kBFloat16),
              operation, ": entries must be fp32 or bf16 [blocks, block_size, rank + rope] and contiguous");
}

}  // namespace

void write_latents(const at::Tensor& entries, const at::Tensor& latent, const at::Tensor& key,
                   const at::Tensor& slots) {
  check_entries(entries, "write_latents");
  TORCH_CHECK(latent.dim() == 2 && key.dim() == 2 && latent.size(0) == key.size(0) &&
                  latent.size(1) + key.size(1) == entries.size(2) && latent.stride(1) == 1 && key.stride(1) == 1 &&
                  latent.scalar_type() == entries.scalar_type() && key.scalar_type() == entries.scalar_type(),
              "write_latents: latents ", latent.sizes(), " and keys ", key.sizes(), " of type ", latent.scalar_type(),
              " do not fit entries of ", entries.sizes(), " ", entries.scalar_type());
  TORCH_CHECK(
      slots.dim() == 1 && slots.size(0) == latent.size(0) && slots.scalar_type() == at::kLong && slots.is_contiguous(),
      "write_latents: slots must be int64 [", latent.size(0), "]");
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("distill::write_latents", "")
                             .typed<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
  op.call(entries, latent, key, slots);
}

at::Tensor mla_attention(const at::Tensor& q, const at::Tensor& entries, const PagedSequences& sequences, int64_t rank,
                         double scale) {
  check_entries(entries, "mla_attention");
  TORCH_CHECK(q.dim() == 3 && q.size(2) == entries.size(2) && q.is_contiguous() &&
                  q.scalar_type() == entries.scalar_type() && rank > 0 && rank <= entries.size(2),
              "mla_attention: q ", q.sizes(), " ", q.scalar_type(), " does not fit entries of ", entries.sizes(), " ",
              entries.scalar_type());
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("distill::mla_attention", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                               const at::Tensor&, const at::Tensor&, int64_t, double)>();
  return op.call(q, entries, sequences.sequence_offsets, sequences.block_table, sequences.context_lengths, rank, scale);
}

}  // namespace distill::kernels
