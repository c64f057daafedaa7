#include "nn/linear.h"

#include <ATen/ATen.h>

#include <optional>
#include <utility>

namespace distill::nn {
namespace {

at::Tensor join(const std::vector<Linear::Part>& parts, at::Tensor Linear::Part::*member, at::ScalarType dtype) {
  if (!(parts.front().*member).defined()) return {};
  if (parts.size() == 1) return (parts.front().*member).to(dtype);
  std::vector<at::Tensor> tensors;
  for (const auto& part : parts) tensors.push_back((part.*member).to(dtype));
  return at::cat(tensors);
}

// The parts' blocks below each other, or nothing if they are not all blocks of one kind.
std::optional<kernels::BlockWeight> join_blocks(const std::vector<Linear::Part>& parts) {
  std::vector<at::Tensor> codes;
  std::vector<at::Tensor> scales;
  std::vector<at::Tensor> mins;
  for (const auto& part : parts) {
    if (!part.blocks || part.blocks->codes.scalar_type() != parts.front().blocks->codes.scalar_type() ||
        part.blocks->mins.defined() != parts.front().blocks->mins.defined()) {
      return std::nullopt;
    }
    codes.push_back(part.blocks->codes);
    scales.push_back(part.blocks->scales);
    if (part.blocks->mins.defined()) mins.push_back(part.blocks->mins);
  }
  return kernels::BlockWeight{
      .codes = at::cat(codes), .scales = at::cat(scales), .mins = mins.empty() ? at::Tensor() : at::cat(mins)};
}

}  // namespace

Linear::Linear(std::vector<Part> parts, const ModelOptions& options) : options_(options), parts_(std::move(parts)) {
  const auto blocks = options_.compute == at::kBFloat16 && !options_.trainable ? join_blocks(parts_) : std::nullopt;
  if (blocks) {
    packed_ = kernels::pack_weight(*blocks);
    packed_bias_ = joined_bias(at::kFloat);
    parts_.clear();
    return;
  }
  for (auto& part : parts_) {
    if (part.blocks) part.weight = kernels::block_values(*part.blocks);
    part.blocks.reset();
    TORCH_CHECK(part.weight.dim() == 2 && part.weight.size(1) == parts_.front().weight.size(1) &&
                    (!part.bias.defined() || part.bias.numel() == part.weight.size(0)) &&
                    part.bias.defined() == parts_.front().bias.defined(),
                "Linear: a part of shape ", part.weight.sizes(), " does not fit the first, ",
                parts_.front().weight.sizes());
  }
  if (options_.trainable) return;
  packed_ = kernels::pack_weight(joined_weight(options_.compute), options_.compute);
  packed_bias_ = joined_bias(at::kFloat);
  parts_.clear();
}

at::Tensor Linear::joined_weight(at::ScalarType dtype) const {
  return join(parts_, &Part::weight, dtype);
}

at::Tensor Linear::joined_bias(at::ScalarType dtype) const {
  return join(parts_, &Part::bias, dtype);
}

at::Tensor Linear::multiply(const at::Tensor& x, at::ScalarType dtype) const {
  const at::Tensor bias = joined_bias(dtype);
  return at::linear(x.to(dtype), joined_weight(dtype), bias.defined() ? std::optional(bias) : std::nullopt);
}

at::Tensor Linear::forward(const at::Tensor& x, const at::Tensor& residual) const {
  if (!options_.trainable) return kernels::packed_linear(x, packed_, packed_bias_, residual, options_.compute);
  const at::Tensor y = multiply(x, options_.compute);
  return residual.defined() ? y + residual : y;
}

at::Tensor Linear::forward_fp32(const at::Tensor& x) const {
  if (!options_.trainable) return kernels::packed_linear(x, packed_, packed_bias_, {}, at::kFloat);
  return multiply(x, at::kFloat);
}

at::Tensor Linear::rows(const at::Tensor& ids, bool tied) const {
  if (!options_.trainable) return kernels::packed_rows(packed_, ids);
  const at::Tensor rows = at::embedding(parts_.front().weight, ids, /*padding_idx=*/-1, /*scale_grad_by_freq=*/false,
                                        /*sparse=*/tied);
  return rows.to(options_.compute);
}

at::Tensor Linear::weight() const {
  TORCH_CHECK(parts_.size() <= 1, "Linear: the weight has ", parts_.size(), " parts");
  if (!options_.trainable) return kernels::packed_rows(packed_, at::arange(packed_.out, at::kLong));
  return parts_.front().weight;
}

}  // namespace distill::nn
