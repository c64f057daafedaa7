#include "kernels/attention/varlen_attention.h"

#include <ATen/ATen.h>

#include <optional>
#include <vector>

namespace distill::kernels {
namespace {

// Each sequence as scaled_dot_product_attention takes it, [1, heads, length, dim]. One split, not a slice for each: its
// gradient is one concatenation, where that of a slice is as large as x for every sequence.
std::vector<at::Tensor> sequences_of(const at::Tensor& x, at::IntArrayRef lengths) {
  std::vector<at::Tensor> parts = x.split_with_sizes(lengths);
  for (auto& part : parts) part = part.transpose(0, 1).unsqueeze(0);
  return parts;
}

// True where query i may see key j: i - window < j <= i.
at::Tensor window_mask(int64_t length, int64_t window, at::Device device) {
  const at::Tensor ones = at::ones({length, length}, at::device(device).dtype(at::kBool));
  return ones.tril().triu(1 - window);
}

}  // namespace

at::Tensor varlen_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& sequence_offsets, double scale, int64_t window) {
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.dim() == 3 && k.size(0) == q.size(0) && v.size(0) == q.size(0) &&
                  k.size(1) == v.size(1) && q.size(1) % k.size(1) == 0 && k.size(2) == q.size(2),
              "varlen_attention: q ", q.sizes(), ", k ", k.sizes(), " and v ", v.sizes(), " do not fit together");
  TORCH_CHECK(sequence_offsets.dim() == 1 && sequence_offsets.scalar_type() == at::kInt,
              "varlen_attention: sequence_offsets must be int32 [sequences + 1]");
  const at::Tensor offsets = sequence_offsets.cpu();
  const auto* offset = offsets.const_data_ptr<int32_t>();
  TORCH_CHECK(offset[0] == 0 && offset[offsets.size(0) - 1] == q.size(0), "varlen_attention: sequence_offsets from ",
              offset[0], " to ", offset[offsets.size(0) - 1], " for ", q.size(0), " tokens");
  std::vector<int64_t> lengths;
  for (int64_t s = 0; s + 1 < offsets.size(0); ++s) {
    if (offset[s + 1] != offset[s]) lengths.push_back(offset[s + 1] - offset[s]);
  }
  const auto queries = sequences_of(q, lengths);
  const auto keys = sequences_of(k, lengths);
  const auto values = sequences_of(v, lengths);
  std::vector<at::Tensor> outputs;
  for (size_t s = 0; s < lengths.size(); ++s) {
    const bool windowed = window > 0 && lengths[s] > window;
    const at::Tensor output = at::scaled_dot_product_attention(
        queries[s], keys[s], values[s],
        windowed ? std::optional(window_mask(lengths[s], window, q.device())) : std::nullopt, /*dropout_p=*/0.0,
        /*is_causal=*/!windowed, scale, /*enable_gqa=*/q.size(1) != k.size(1));
    outputs.push_back(output.squeeze(0).transpose(0, 1));
  }
  if (outputs.empty()) return at::empty({0, q.size(1), v.size(2)}, q.options());
  return at::cat(outputs);
}

}  // namespace distill::kernels
