#include "nn/block_allocator.h"

#include <numeric>

#include "core/error.h"

namespace distill::nn {

BlockAllocator::BlockAllocator(int64_t blocks) {
  core::check(blocks > 0 && blocks <= INT32_MAX, "a cache cannot have {} blocks", blocks);
  references_.resize(static_cast<size_t>(blocks));
  free_.resize(static_cast<size_t>(blocks));
  std::iota(free_.rbegin(), free_.rend(), 0);
}

int32_t BlockAllocator::allocate() {
  core::check(!free_.empty(), "no cache block is free");
  const int32_t block = free_.back();
  free_.pop_back();
  references_[static_cast<size_t>(block)] = 1;
  return block;
}

void BlockAllocator::share(int32_t block) {
  core::check(references(block) > 0, "cache block {} is not in use", block);
  ++references_[static_cast<size_t>(block)];
}

void BlockAllocator::release(int32_t block) {
  core::check(references(block) > 0, "cache block {} is not in use", block);
  if (--references_[static_cast<size_t>(block)] == 0) free_.push_back(block);
}

int32_t BlockAllocator::references(int32_t block) const {
  core::check(block >= 0 && block < num_blocks(), "cache block {} is not one of {}", block, num_blocks());
  return references_[static_cast<size_t>(block)];
}

}  // namespace distill::nn
