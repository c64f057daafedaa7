// A ContextModel with a drafter that knows the context only through its own entries in the cache: it guesses right
// unless it is made to err, or an entry went to the wrong place.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "nn/drafter.h"
#include "tests/nn/context_model.h"

namespace distill::nn {

// Remembers, beside the model's tokens, the token that follows each.
class DraftingCache final : public ContextCache {
 public:
  DraftingCache(int64_t blocks, int64_t block_size)
      : ContextCache(blocks, block_size), next_(blocks * block_size, -1) {}
  void copy_block(int64_t from, int64_t to) override {
    ContextCache::copy_block(from, to);
    std::copy_n(next_.begin() + from * block_size(), block_size(), next_.begin() + to * block_size());
  }
  int64_t& next(int64_t slot) { return next_.at(slot); }

 private:
  std::vector<int64_t> next_;
};

class DraftingModel final : public ContextModel, public Drafter {
 public:
  using ContextModel::ContextModel;
  Drafter* drafter() override { return this; }
  std::unique_ptr<KvCache> make_cache(int64_t blocks, int64_t block_size) const override {
    return std::make_unique<DraftingCache>(blocks, block_size);
  }

  at::Tensor draft_forward(const PackedBatch& batch, const at::Tensor& hidden, KvCache& cache,
                           const CacheSlots& slots) override {
    auto& entries = dynamic_cast<DraftingCache&>(cache);
    const int64_t tokens = batch.tokens.size(0);
    TORCH_CHECK(hidden.size(0) == tokens && slots.slots.size(0) == tokens);
    for (int64_t t = 0; t < tokens; ++t) entries.next(slots.slots[t].item<int64_t>()) = batch.tokens[t].item<int64_t>();
    std::vector<uint64_t> hashes;
    for_each_sequence(batch, [&](int64_t sequence, int64_t begin, int64_t end) {
      const int64_t length = slots.context_lengths[sequence].item<int64_t>();
      std::vector<int64_t> context;
      for (int64_t p = 0; p < length; ++p) {
        const int64_t slot = slots.block_table[sequence][p / cache.block_size()].item<int64_t>() * cache.block_size() +
                             p % cache.block_size();
        if (p == 0) context.push_back(entries.at(slot));
        context.push_back(entries.next(slot));
        if (p < length - (end - begin)) continue;
        const int64_t t = begin + p - (length - (end - begin));
        TORCH_CHECK(batch.positions[t].item<int64_t>() == p, "token ", t, " has a wrong position");
        check_hidden(context, hidden[t]);
        hashes.push_back(hash(context) ^ (core::Philox(hash(context), 1, 0).next_below(3) < wrong_thirds ? 1 : 0));
      }
    });
    return hidden_of(hashes);
  }
  at::Tensor draft_logits(const at::Tensor& hidden) override { return ContextModel::logits(hidden); }

  uint32_t wrong_thirds = 0;  // so many guesses of three are of another context

 private:
  // The hidden state that comes with a token is that of the context before it: the model's, or the drafter's own.
  void check_hidden(std::vector<int64_t> context, const at::Tensor& row) const {
    context.pop_back();
    const at::Tensor expected = hidden_of({hash(context)})[0];
    TORCH_CHECK(wrong_thirds > 0 || expected.equal(row), "the drafter got the hidden state of another position");
  }
};

}  // namespace distill::nn
