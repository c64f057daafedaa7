#include "kernels/mla_attention/mla_attention.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/mla_attention/fp8_entries.h"

namespace distill::kernels {
namespace {

TORCH_LIBRARY_FRAGMENT(distill, library) {
  library.def("write_latents(Tensor(a!) entries, Tensor latent, Tensor key, Tensor slots) -> ()");
  library.def("read_fp8_latents(Tensor entries, Tensor slots, int rank, int rope, ScalarType dtype) -> Tensor");
  library.def(
      "mla_attention(Tensor q, Tensor entries, Tensor sequence_offsets, Tensor block_table, Tensor context_lengths, "
      "int rank, float scale) -> Tensor");
}

// `dtype` is that of what goes with them.
void check_entries(const at::Tensor& entries, int64_t rank, int64_t rope, at::ScalarType dtype, const char* operation) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, operation, ": expected fp32 or bf16, found ", dtype);
  const bool fp8 = entries.scalar_type() == at::kByte;
  TORCH_CHECK(entries.dim() == 3 && entries.is_contiguous() && rank > 0 && rope >= 0 &&
                  entries.size(2) == (fp8 ? Fp8Entry{rank, rope}.bytes() : rank + rope) &&
                  (fp8 || entries.scalar_type() == dtype),
              operation, ": entries ", entries.sizes(), " ", entries.scalar_type(), " do not fit latents of ", rank,
              " and keys of ", rope, " values of type ", dtype);
}

void check_slots(const at::Tensor& slots, const char* operation) {
  TORCH_CHECK(slots.dim() == 1 && slots.scalar_type() == at::kLong && slots.is_contiguous(), operation,
              ": slots must be int64 [tokens]");
}

}  // namespace

void write_latents(const at::Tensor& entries, const at::Tensor& latent, const at::Tensor& key,
                   const at::Tensor& slots) {
  check_slots(slots, "write_latents");
  TORCH_CHECK(latent.dim() == 2 && key.dim() == 2 && latent.size(0) == slots.size(0) && key.size(0) == slots.size(0) &&
                  latent.stride(1) == 1 && key.stride(1) == 1 && key.scalar_type() == latent.scalar_type(),
              "write_latents: latents ", latent.sizes(), " and keys ", key.sizes(), " of types ", latent.scalar_type(),
              " and ", key.scalar_type(), " do not fit ", slots.size(0), " slots");
  check_entries(entries, latent.size(1), key.size(1), latent.scalar_type(), "write_latents");
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("distill::write_latents", "")
                             .typed<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&)>();
  op.call(entries, latent, key, slots);
}

at::Tensor read_fp8_latents(const at::Tensor& entries, const at::Tensor& slots, int64_t rank, int64_t rope,
                            at::ScalarType dtype) {
  check_slots(slots, "read_fp8_latents");
  TORCH_CHECK(entries.scalar_type() == at::kByte, "read_fp8_latents: entries are ", entries.scalar_type());
  check_entries(entries, rank, rope, dtype, "read_fp8_latents");
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("distill::read_fp8_latents", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t, at::ScalarType)>();
  return op.call(entries, slots, rank, rope, dtype);
}

at::Tensor mla_attention(const at::Tensor& q, const at::Tensor& entries, const PagedSequences& sequences, int64_t rank,
                         double scale) {
  TORCH_CHECK(q.dim() == 3 && q.is_contiguous(),
              "mla_attention: q must be [tokens, heads, rank + rope] and contiguous");
  check_entries(entries, rank, q.size(2) - rank, q.scalar_type(), "mla_attention");
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("distill::mla_attention", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                               const at::Tensor&, const at::Tensor&, int64_t, double)>();
  return op.call(q, entries, sequences.sequence_offsets, sequences.block_table, sequences.context_lengths, rank, scale);
}

}  // namespace distill::kernels
