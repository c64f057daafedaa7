// Hands out the blocks of a cache. A block may belong to several sequences that begin alike; whoever wants to write to
// such a block takes a copy of its own first.
#pragma once

#include <cstdint>
#include <vector>

namespace distill::nn {

// Counts references; touches no tensors. Not thread-safe.
class BlockAllocator {
 public:
  explicit BlockAllocator(int64_t blocks);

  int64_t num_blocks() const { return static_cast<int64_t>(references_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }

  // A block with one reference: the one given back last, so that memory never used is touched last. There must be a
  // free one.
  int32_t allocate();
  // One more reference to a block in use.
  void share(int32_t block);
  // One reference less; a block without any is free.
  void release(int32_t block);

  bool is_shared(int32_t block) const { return references(block) > 1; }
  int32_t references(int32_t block) const;

 private:
  std::vector<int32_t> references_;  // [blocks]
  std::vector<int32_t> free_;        // used from the back
};

}  // namespace distill::nn
