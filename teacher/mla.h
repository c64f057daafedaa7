// Multi-head latent attention (DeepSeek-V2 §2.1, eqs. 9 to 19): keys and values are projected up from one latent per
// token, which is all that a cache holds.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "kernels/fp8/stored_weight.h"
#include "nn/causal_lm.h"
#include "teacher/deepseek_config.h"
#include "teacher/deepseek_weights.h"

namespace distill::teacher {

// Two ways to compute the same attention. Naive: keys and values of every head are projected up from the latents, then
// ordinary attention. Absorbed: queries are carried into the latent space instead, where all heads attend to the
// latents themselves. Absorbed costs less for few new tokens after a long context; naive for prompts, even in pieces,
// although it projects earlier context up anew for each. A function of one sequence's lengths, so that a sequence's
// form does not depend on the others. Fewer than kLeastPiece new tokens after a context are always absorbed, so that
// tokens come out alike whether they are decoded one by one or drafts are verified together; contexts of more than
// kMostProjected tokens too, whose keys and values of every head would take too much memory.
constexpr int64_t kLeastPiece = 64;
constexpr int64_t kMostProjected = 8192;
bool absorbed_is_cheaper(const MlaConfig& config, int64_t new_tokens, int64_t context);

// The sequences of a batch that attend in one form.
struct AttentionPart {
  at::Tensor tokens;            // [part's tokens] int64, their rows in the batch; undefined if it is all of them
  at::Tensor sequence_offsets;  // [part's sequences + 1] int32
  at::Tensor block_table;       // with a cache: [part's sequences, max_blocks] int32
  at::Tensor context_lengths;   // with a cache: [part's sequences] int32
  // Naive, with a cache: where it holds the tokens of all contexts, one sequence after the other, and which are whose.
  at::Tensor context_slots;    // [tokens of all contexts] int64
  at::Tensor context_offsets;  // [part's sequences + 1] int32
};

// What all layers of one forward share. T tokens, R rope_dim.
struct AttentionStep {
  at::Tensor cos, sin;  // [T, R / 2] fp32
  at::Tensor slots;     // with a cache: [T] int64
  std::optional<AttentionPart> naive, absorbed;

  // `slots` are null without a cache in blocks of `block_size`; then all sequences attend in the naive form.
  static AttentionStep plan(const MlaConfig& config, const nn::PackedBatch& batch, const nn::CacheSlots* slots,
                            int64_t block_size);
};

class MultiHeadLatentAttention {
 public:
  // The weights of layer `layer`.
  MultiHeadLatentAttention(const MlaConfig& config, const DeepseekWeights& weights, int64_t layer,
                           at::ScalarType compute);

  // x [T, hidden] normalised, `residual` [T, hidden]; returns residual + attention, [T, hidden]. `entries` is this
  // layer's part of a LatentKvCache, to which the new tokens are written, or undefined to attend within the batch
  // alone.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& residual, const AttentionStep& step,
                     const at::Tensor& entries) const;

 private:
  struct Projection {
    kernels::StoredWeight weight;
    at::Tensor bias;  // fp32 or undefined
    at::Tensor forward(const at::Tensor& x, const at::Tensor& residual = {}) const;
  };
  // H heads; L latent_rank, R rope_dim, N nope_dim, V value_dim.
  struct Inputs {
    at::Tensor query_nope;  // [T, H, N], a part of a projection
    at::Tensor query_rope;  // [T, H, R], rotated
    at::Tensor latent;      // [T, L], normalised
    at::Tensor key_rope;    // [T, R], rotated

    Inputs rows(const at::Tensor& tokens) const;  // all if undefined
  };

  Inputs project(const at::Tensor& x, const AttentionStep& step) const;
  at::Tensor rotate(const at::Tensor& x, const AttentionStep& step) const;
  at::Tensor attend_naive(Inputs inputs, const AttentionPart& part, const at::Tensor& entries) const;  // [T, H, V]
  at::Tensor attend_absorbed(const Inputs& inputs, const AttentionPart& part, const at::Tensor& entries) const;

  MlaConfig config_;
  Projection query_;       // hidden -> H (N + R), or from the compressed query
  Projection query_down_;  // hidden -> query_rank, where queries are compressed
  at::Tensor query_norm_;
  Projection latent_down_;  // hidden -> L + R
  at::Tensor latent_norm_;
  kernels::StoredWeight latent_up_;       // L -> H (N + V)
  kernels::StoredWeight query_absorber_;  // [H L, N]: the keys' rows of latent_up_, transposed per head
  Projection output_;                     // H V -> hidden
};

}  // namespace distill::teacher
