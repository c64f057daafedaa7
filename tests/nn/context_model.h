// A tiny CausalLM whose logits depend on every token of the context and its position, read back through the cache: a
// wrong block, slot, position or boundary changes them altogether.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <vector>

#include "core/philox.h"
#include "nn/causal_lm.h"

namespace distill::nn {

// Remembers token ids.
class ContextCache : public KvCache {
 public:
  ContextCache(int64_t blocks, int64_t block_size) : block_size_(block_size), ids_(blocks * block_size, -1) {}
  int64_t num_blocks() const override { return static_cast<int64_t>(ids_.size()) / block_size_; }
  int64_t block_size() const override { return block_size_; }
  int64_t bytes_per_token() const override { return 8; }
  void copy_block(int64_t from, int64_t to) override {
    std::copy_n(ids_.begin() + from * block_size_, block_size_, ids_.begin() + to * block_size_);
    ++copies;
  }
  int64_t& at(int64_t slot) { return ids_.at(slot); }

  int64_t copies = 0;

 private:
  int64_t block_size_;
  std::vector<int64_t> ids_;
};

class ContextModel : public CausalLM {
 public:
  explicit ContextModel(int64_t vocab_size = 50, int64_t max_positions = 200)
      : shape_{.vocab_size = vocab_size, .hidden_size = 4, .num_layers = 1, .max_positions = max_positions} {}

  const ModelShape& shape() const override { return shape_; }

  at::Tensor forward(const PackedBatch& batch) override {
    std::vector<uint64_t> hashes;
    for_each_sequence(batch, [&](int64_t, int64_t begin, int64_t end) {
      std::vector<int64_t> context;
      for (int64_t t = begin; t < end; ++t) {
        context.push_back(batch.tokens[t].item<int64_t>());
        hashes.push_back(hash(context));
      }
    });
    return hidden_of(hashes);
  }

  at::Tensor forward(const PackedBatch& batch, KvCache& cache, const CacheSlots& slots) override {
    auto& entries = dynamic_cast<ContextCache&>(cache);
    const int64_t tokens = batch.tokens.size(0);
    TORCH_CHECK(slots.slots.size(0) == tokens && batch.positions.size(0) == tokens);
    for (int64_t t = 0; t < tokens; ++t) entries.at(slots.slots[t].item<int64_t>()) = batch.tokens[t].item<int64_t>();
    std::vector<uint64_t> hashes;
    for_each_sequence(batch, [&](int64_t sequence, int64_t begin, int64_t end) {
      const int64_t length = slots.context_lengths[sequence].item<int64_t>();
      std::vector<int64_t> context;
      for (int64_t p = 0; p < length; ++p) {
        const auto block = slots.block_table[sequence][p / cache.block_size()].item<int64_t>();
        context.push_back(entries.at(block * cache.block_size() + p % cache.block_size()));
        if (p < length - (end - begin)) continue;
        const int64_t t = begin + p - (length - (end - begin));
        TORCH_CHECK(batch.positions[t].item<int64_t>() == p, "token ", t, " has a wrong position");
        TORCH_CHECK(slots.slots[t].item<int64_t>() == block * cache.block_size() + p % cache.block_size());
        hashes.push_back(hash(context));
      }
    });
    largest_step = std::max(largest_step, tokens);
    most_sequences = std::max(most_sequences, slots.context_lengths.size(0));
    return hidden_of(hashes);
  }

  // Its embedding, layer 0, is the token's id.
  at::Tensor forward_tapped(const PackedBatch& batch, KvCache* cache, const CacheSlots* slots, LayerTap& tap) override {
    tap.offer(0, batch.tokens.to(at::kFloat).unsqueeze(1).expand({-1, shape_.hidden_size}));
    const at::Tensor hidden = cache != nullptr ? forward(batch, *cache, *slots) : forward(batch);
    tap.offer(shape_.num_layers, hidden);
    return hidden;
  }

  at::Tensor logits(const at::Tensor& hidden) override {
    at::Tensor result = at::empty({hidden.size(0), shape_.vocab_size}, at::kFloat);
    for (int64_t row = 0; row < hidden.size(0); ++row) {
      uint64_t hash = 0;
      for (int64_t i = 0; i < 4; ++i) hash = hash << 16 | hidden[row][i].item<int64_t>();
      core::Philox random(hash, 0, 0);
      auto* out = result.mutable_data_ptr<float>() + row * shape_.vocab_size;
      for (int64_t v = 0; v < shape_.vocab_size; ++v) out[v] = static_cast<float>(2 * random.next_normal());
      if (nan_after >= 0 && logit_rows++ >= nan_after) out[0] = std::numeric_limits<float>::quiet_NaN();
    }
    return result;
  }

  at::Tensor head_weight() override { return {}; }
  std::unique_ptr<KvCache> make_cache(int64_t blocks, int64_t block_size) const override {
    return std::make_unique<ContextCache>(blocks, block_size);
  }
  std::vector<std::pair<std::string, at::Tensor>> parameters() override { return {}; }

  int64_t largest_step = 0;    // tokens
  int64_t most_sequences = 0;  // side by side
  int64_t nan_after = -1;      // rows of logits until one is damaged; never if negative
  int64_t logit_rows = 0;

 protected:
  static uint64_t hash(const std::vector<int64_t>& context) {
    std::string bytes;
    for (const int64_t id : context) bytes.append(reinterpret_cast<const char*>(&id), sizeof id);
    return core::stream_id(bytes, context.size());
  }

  template <typename Body>
  static void for_each_sequence(const PackedBatch& batch, Body&& body) {
    for (int64_t s = 0; s + 1 < batch.sequence_offsets.size(0); ++s) {
      body(s, batch.sequence_offsets[s].item<int64_t>(), batch.sequence_offsets[s + 1].item<int64_t>());
    }
  }

  // 16 bits of the hash per column, which fp32 holds exactly.
  static at::Tensor hidden_of(const std::vector<uint64_t>& hashes) {
    at::Tensor hidden = at::empty({static_cast<int64_t>(hashes.size()), 4}, at::kFloat);
    auto* out = hidden.mutable_data_ptr<float>();
    for (const uint64_t hash : hashes) {
      for (int shift = 48; shift >= 0; shift -= 16) *out++ = static_cast<float>(hash >> shift & 0xFFFF);
    }
    return hidden;
  }

 private:
  ModelShape shape_;
};

}  // namespace distill::nn
