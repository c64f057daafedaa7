#include "teacher/mla.h"

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "kernels/attention/varlen_attention.h"
#include "kernels/mla_attention/mla_attention.h"
#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rotary/rotary.h"
#include "kernels/stored_linear/stored_linear.h"

namespace distill::teacher {
namespace {

// DeepSeek's code normalises the compressed query and the latent with this, whatever rms_norm_eps says.
constexpr double kLatentNormEps = 1e-6;

// The part of `batch` that holds the sequences listed in `chosen`.
AttentionPart part_of(const nn::PackedBatch& batch, const nn::CacheSlots* slots, const std::vector<int64_t>& chosen) {
  const at::Tensor offsets = batch.sequence_offsets.contiguous();
  const auto* offset = offsets.const_data_ptr<int32_t>();
  AttentionPart part;
  const at::Tensor sequences = at::tensor(chosen, at::kLong);
  if (slots != nullptr) {
    part.block_table = slots->block_table.index_select(0, sequences);
    part.context_lengths = slots->context_lengths.index_select(0, sequences);
  }
  if (static_cast<int64_t>(chosen.size()) == offsets.size(0) - 1) {
    part.sequence_offsets = offsets;
    return part;
  }
  std::vector<at::Tensor> tokens;
  std::vector<int32_t> part_offsets{0};
  for (const int64_t s : chosen) {
    tokens.push_back(at::arange(offset[s], offset[s + 1], at::kLong));
    part_offsets.push_back(part_offsets.back() + offset[s + 1] - offset[s]);
  }
  part.tokens = at::cat(tokens);
  part.sequence_offsets = at::tensor(part_offsets, at::kInt);
  return part;
}

void find_contexts(AttentionPart& part, int64_t block_size) {
  const at::Tensor lengths = part.context_lengths.contiguous();
  std::vector<at::Tensor> slots;
  for (int64_t s = 0; s < lengths.size(0); ++s) {
    const at::Tensor positions = at::arange(lengths.const_data_ptr<int32_t>()[s], at::kLong);
    const at::Tensor blocks =
        part.block_table[s].to(at::kLong).index_select(0, positions.div(block_size, /*rounding_mode=*/"floor"));
    slots.push_back(blocks * block_size + positions.remainder(block_size));
  }
  part.context_slots = at::cat(slots);
  part.context_offsets = at::constant_pad_nd(lengths.cumsum(0), {1, 0}).to(at::kInt);
}

}  // namespace

bool absorbed_is_cheaper(const MlaConfig& config, int64_t new_tokens, int64_t context) {
  if (new_tokens < context && (new_tokens < kLeastPiece || context > kMostProjected)) return true;
  // Multiply-adds per head.
  const int64_t projection = (config.nope_dim + config.value_dim) * config.latent_rank;  // per token, in both forms
  const int64_t pairs = new_tokens * (context - new_tokens) + new_tokens * (new_tokens + 1) / 2;
  const int64_t naive = context * projection + pairs * (config.query_dim() + config.value_dim);
  const int64_t absorbed = new_tokens * projection + pairs * (2 * config.latent_rank + config.rope_dim);
  return absorbed < naive || new_tokens == 1;
}

AttentionStep AttentionStep::plan(const MlaConfig& config, const nn::PackedBatch& batch, const nn::CacheSlots* slots,
                                  int64_t block_size) {
  std::vector<int64_t> naive;
  std::vector<int64_t> absorbed;
  const at::Tensor offsets = batch.sequence_offsets.contiguous();
  const auto* offset = offsets.const_data_ptr<int32_t>();
  const at::Tensor lengths = slots != nullptr ? slots->context_lengths.contiguous() : at::Tensor();
  for (int64_t s = 0; s + 1 < offsets.size(0); ++s) {
    const int64_t fresh = offset[s + 1] - offset[s];
    const bool in_latents =
        slots != nullptr && absorbed_is_cheaper(config, fresh, lengths.const_data_ptr<int32_t>()[s]);
    (in_latents ? absorbed : naive).push_back(s);
  }
  AttentionStep step;
  if (slots != nullptr) step.slots = slots->slots;
  if (!naive.empty()) step.naive = part_of(batch, slots, naive);
  if (step.naive && slots != nullptr) find_contexts(*step.naive, block_size);
  if (!absorbed.empty()) step.absorbed = part_of(batch, slots, absorbed);
  return step;
}

MultiHeadLatentAttention::Inputs MultiHeadLatentAttention::Inputs::rows(const at::Tensor& tokens) const {
  if (!tokens.defined()) return *this;
  return {.query_nope = query_nope.index_select(0, tokens),
          .query_rope = query_rope.index_select(0, tokens),
          .latent = latent.index_select(0, tokens),
          .key_rope = key_rope.index_select(0, tokens)};
}

at::Tensor MultiHeadLatentAttention::Projection::forward(const at::Tensor& x, const at::Tensor& residual) const {
  return kernels::stored_linear(x, weight, bias, residual, x.scalar_type());
}

MultiHeadLatentAttention::MultiHeadLatentAttention(const MlaConfig& config, const DeepseekWeights& weights,
                                                   int64_t layer, at::ScalarType compute)
    : config_(config) {
  const auto projection = [&](const std::string& part, bool bias) {
    Projection result{.weight = weights.matrix(layer_tensor(layer, part + ".weight"), compute), .bias = {}};
    if (bias) result.bias = weights.vector(layer_tensor(layer, part + ".bias"));
    return result;
  };
  if (config.query_rank > 0) {
    query_down_ = projection("self_attn.q_a_proj", config.bias);
    query_norm_ = weights.vector(layer_tensor(layer, "self_attn.q_a_layernorm.weight"));
    query_ = projection("self_attn.q_b_proj", false);
  } else {
    query_ = projection("self_attn.q_proj", false);
  }
  latent_down_ = projection("self_attn.kv_a_proj_with_mqa", config.bias);
  latent_norm_ = weights.vector(layer_tensor(layer, "self_attn.kv_a_layernorm.weight"));
  latent_up_ = weights.matrix(layer_tensor(layer, "self_attn.kv_b_proj.weight"), compute);
  output_ = projection("self_attn.o_proj", config.bias);

  const at::Tensor keys = kernels::dequantise(latent_up_)
                              .view({config.num_heads, config.nope_dim + config.value_dim, config.latent_rank})
                              .narrow(1, 0, config.nope_dim);
  query_absorber_.values =
      keys.transpose(1, 2).to(compute).reshape({config.num_heads * config.latent_rank, config.nope_dim}).contiguous();
}

at::Tensor MultiHeadLatentAttention::rotate(const at::Tensor& x, const AttentionStep& step) const {
  // The order in which dimensions come out does not matter, for queries and keys come out alike.
  return config_.interleaved ? kernels::rotary_of_pairs(x, step.cos, step.sin)
                             : kernels::rotary(x.contiguous(), step.cos, step.sin);
}

MultiHeadLatentAttention::Inputs MultiHeadLatentAttention::project(const at::Tensor& x,
                                                                   const AttentionStep& step) const {
  const at::Tensor compressed =
      config_.query_rank > 0 ? kernels::rms_norm(query_down_.forward(x), query_norm_, kLatentNormEps) : x;
  const at::Tensor query = query_.forward(compressed).view({x.size(0), config_.num_heads, config_.query_dim()});
  const at::Tensor latent_and_key = latent_down_.forward(x);
  const at::Tensor key = latent_and_key.narrow(1, config_.latent_rank, config_.rope_dim).unsqueeze(1);
  return {.query_nope = query.narrow(2, 0, config_.nope_dim),
          .query_rope = rotate(query.narrow(2, config_.nope_dim, config_.rope_dim), step),
          .latent = kernels::rms_norm(latent_and_key.narrow(1, 0, config_.latent_rank), latent_norm_, kLatentNormEps),
          .key_rope = rotate(key, step).squeeze(1)};
}

at::Tensor MultiHeadLatentAttention::attend_naive(Inputs inputs, const AttentionPart& part,
                                                  const at::Tensor& entries) const {
  at::Tensor key_offsets = part.sequence_offsets;
  const bool fp8 = entries.defined() && entries.scalar_type() == at::kByte;
  if (fp8 || (entries.defined() && part.context_slots.size(0) > inputs.latent.size(0))) {
    // Tokens before these, and of all what later ones will find in the cache, so that both forms attend to the same.
    const at::Tensor held = fp8 ? kernels::read_fp8_latents(entries, part.context_slots, config_.latent_rank,
                                                            config_.rope_dim, inputs.latent.scalar_type())
                                : entries.flatten(0, 1).index_select(0, part.context_slots);
    inputs.latent = held.narrow(1, 0, config_.latent_rank).contiguous();
    inputs.key_rope = held.narrow(1, config_.latent_rank, config_.rope_dim);
    key_offsets = part.context_offsets;
  }
  const int64_t tokens = inputs.latent.size(0);
  const int64_t heads = config_.num_heads;
  const at::Tensor up = kernels::stored_linear(inputs.latent, latent_up_, {}, {}, inputs.latent.scalar_type())
                            .view({tokens, heads, config_.nope_dim + config_.value_dim});
  at::Tensor query = at::cat({inputs.query_nope, inputs.query_rope}, 2);
  at::Tensor key = at::cat(
      {up.narrow(2, 0, config_.nope_dim), inputs.key_rope.unsqueeze(1).expand({tokens, heads, config_.rope_dim})}, 2);
  at::Tensor value = up.narrow(2, config_.nope_dim, config_.value_dim);
  // Fused attention wants keys and values of one size: zeros change neither scores nor the values kept.
  const int64_t missing = config_.query_dim() - config_.value_dim;
  if (missing > 0) value = at::constant_pad_nd(value, {0, missing});
  if (missing < 0) {
    query = at::constant_pad_nd(query, {0, -missing});
    key = at::constant_pad_nd(key, {0, -missing});
  }
  return kernels::varlen_attention(query, key, value, part.sequence_offsets, config_.softmax_scale, /*window=*/0,
                                   key_offsets)
      .narrow(2, 0, config_.value_dim);
}

at::Tensor MultiHeadLatentAttention::attend_absorbed(const Inputs& inputs, const AttentionPart& part,
                                                     const at::Tensor& entries) const {
  const int64_t rank = config_.latent_rank;
  const at::Tensor carried =
      kernels::head_linear(inputs.query_nope, query_absorber_, {.first = 0, .stride = rank, .rows = rank});
  const at::Tensor mixed = kernels::mla_attention(at::cat({carried, inputs.query_rope}, 2), entries,
                                                  {.sequence_offsets = part.sequence_offsets,
                                                   .block_table = part.block_table,
                                                   .context_lengths = part.context_lengths},
                                                  rank, config_.softmax_scale);
  return kernels::head_linear(
      mixed, latent_up_,
      {.first = config_.nope_dim, .stride = config_.nope_dim + config_.value_dim, .rows = config_.value_dim});
}

at::Tensor MultiHeadLatentAttention::forward(const at::Tensor& x, const at::Tensor& residual, const AttentionStep& step,
                                             const at::Tensor& entries) const {
  const Inputs inputs = project(x, step);
  if (entries.defined()) kernels::write_latents(entries, inputs.latent, inputs.key_rope, step.slots);
  at::Tensor mixed;  // [T, H, V]
  const auto add_part = [&](const AttentionPart& part, const at::Tensor& result) {
    if (!part.tokens.defined()) {
      mixed = result;
      return;
    }
    if (!mixed.defined()) mixed = at::empty({x.size(0), config_.num_heads, config_.value_dim}, x.options());
    mixed.index_copy_(0, part.tokens, result);
  };
  if (step.naive) add_part(*step.naive, attend_naive(inputs.rows(step.naive->tokens), *step.naive, entries));
  if (step.absorbed) {
    add_part(*step.absorbed, attend_absorbed(inputs.rows(step.absorbed->tokens), *step.absorbed, entries));
  }
  return output_.forward(mixed.reshape({x.size(0), config_.num_heads * config_.value_dim}), residual);
}

}  // namespace distill::teacher
