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

// True where a query may see a key: those at or before it, with `window` > 0 only the last `window` of them. The
// queries are the last ones of the sequence.
at::Tensor visible(int64_t queries, int64_t keys, int64_t window, at::Device device) {
  const int64_t before = keys - queries;
  const at::Tensor mask = at::ones({queries, keys}, at::device(device).dtype(at::kBool)).tril(before);
  return window > 0 ? mask.triu(before + 1 - window) : mask;
}

// The lengths that `offsets` [sequences + 1] int32 stand for, of `tokens` in all.
std::vector<int64_t> lengths_of(const at::Tensor& offsets, int64_t tokens) {
  TORCH_CHECK(offsets.dim() == 1 && offsets.scalar_type() == at::kInt,
              "varlen_attention: offsets must be int32 [sequences + 1]");
  const at::Tensor on_host = offsets.cpu().contiguous();
  const auto* offset = on_host.const_data_ptr<int32_t>();
  const int64_t sequences = on_host.size(0) - 1;
  TORCH_CHECK(offset[0] == 0 && offset[sequences] == tokens, "varlen_attention: offsets from ", offset[0], " to ",
              offset[sequences], " for ", tokens, " tokens");
  std::vector<int64_t> lengths;
  for (int64_t s = 0; s < sequences; ++s) lengths.push_back(offset[s + 1] - offset[s]);
  return lengths;
}

}  // namespace

at::Tensor varlen_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& sequence_offsets, double scale, int64_t window,
                            const at::Tensor& key_offsets) {
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.dim() == 3 && v.size(0) == k.size(0) && k.size(1) == v.size(1) &&
                  q.size(1) % k.size(1) == 0 && k.size(2) == q.size(2),
              "varlen_attention: q ", q.sizes(), ", k ", k.sizes(), " and v ", v.sizes(), " do not fit together");
  const std::vector<int64_t> lengths = lengths_of(sequence_offsets, q.size(0));
  const std::vector<int64_t> contexts = lengths_of(key_offsets.defined() ? key_offsets : sequence_offsets, k.size(0));
  TORCH_CHECK(contexts.size() == lengths.size(), "varlen_attention: keys of ", contexts.size(), " sequences for ",
              lengths.size());
  const auto queries = sequences_of(q, lengths);
  const auto keys = sequences_of(k, contexts);
  const auto values = sequences_of(v, contexts);
  std::vector<at::Tensor> outputs;
  for (size_t s = 0; s < lengths.size(); ++s) {
    TORCH_CHECK(lengths[s] <= contexts[s], "varlen_attention: ", lengths[s], " queries over ", contexts[s], " keys");
    if (lengths[s] == 0) continue;
    const bool causal = lengths[s] == contexts[s] && (window <= 0 || lengths[s] <= window);
    const at::Tensor output = at::scaled_dot_product_attention(
        queries[s], keys[s], values[s],
        causal ? std::nullopt : std::optional(visible(lengths[s], contexts[s], window, q.device())), /*dropout_p=*/0.0,
        /*is_causal=*/causal, scale, /*enable_gqa=*/q.size(1) != k.size(1));
    outputs.push_back(output.squeeze(0).transpose(0, 1));
  }
  if (outputs.empty()) return at::empty({0, q.size(1), v.size(2)}, q.options());
  return at::cat(outputs);
}

}  // namespace distill::kernels
