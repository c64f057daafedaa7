// What a model remembers of the tokens it has seen, in blocks that a scheduler hands out to sequences.
#pragma once

#include <cstdint>

namespace distill::nn {

// A model makes the cache it can run with (CausalLM::make_cache) and knows its layout; everyone else only counts and
// copies blocks. Not thread-safe.
class KvCache {
 public:
  virtual ~KvCache() = default;

  virtual int64_t num_blocks() const = 0;
  // Tokens in a block.
  virtual int64_t block_size() const = 0;
  // Over all layers.
  virtual int64_t bytes_per_token() const = 0;

  // Copies the entries of block `from` to block `to` in every layer, so that a sequence which shares a block with
  // others can write to its own.
  virtual void copy_block(int64_t from, int64_t to) = 0;
};

}  // namespace distill::nn
