#include "data/gguf_blocks.h"

#include <ATen/ATen.h>

namespace distill::data::gguf {
namespace {

constexpr int64_t kHalfBytes = 2;

// The fp16 number that begins at byte `at` of every block: [out, blocks].
at::Tensor halves_at(const at::Tensor& blocks, int64_t at) {
  return blocks.narrow(2, at, kHalfBytes).contiguous().view(at::kHalf).squeeze(2);
}

bool all_finite(const at::Tensor& values) {
  return values.isfinite().all().item<bool>();
}

}  // namespace

std::optional<kernels::BlockWeight> block_weight(TensorType type, std::span<const std::byte> bytes,
                                                 const std::vector<int64_t>& shape) {
  const bool known = type == TensorType::kQ4_0 || type == TensorType::kQ4_1 || type == TensorType::kQ8_0;
  if (!known || shape.size() != 2 || bytes.empty()) return std::nullopt;
  const int64_t block_bytes = static_cast<int64_t>(bytes.size()) / (shape[0] * shape[1] / kernels::kBlockInputs);
  const at::Tensor blocks = at::from_blob(const_cast<std::byte*>(bytes.data()),
                                          {shape[0], shape[1] / kernels::kBlockInputs, block_bytes}, at::kByte);
  kernels::BlockWeight weight{.codes = {}, .scales = halves_at(blocks, 0), .mins = {}};
  const int64_t header = (type == TensorType::kQ4_1 ? 2 : 1) * kHalfBytes;
  const at::Tensor stored = blocks.narrow(2, header, block_bytes - header);
  if (type == TensorType::kQ8_0) {
    weight.codes = stored.contiguous().view(at::kChar).reshape(shape);
  } else {
    // A block's first 16 values lie in the low halves of its bytes, the others in the high halves.
    weight.codes = at::cat({stored.bitwise_and(15), stored.bitwise_right_shift(4)}, 2).reshape(shape);
    weight.mins =
        type == TensorType::kQ4_1 ? halves_at(blocks, kHalfBytes) : (weight.scales.to(at::kFloat) * -8).to(at::kHalf);
  }
  if (!all_finite(weight.scales) || (weight.mins.defined() && !all_finite(weight.mins))) return std::nullopt;
  return weight;
}

}  // namespace distill::data::gguf
