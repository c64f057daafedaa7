#include "nn/block_allocator.h"

#include <gtest/gtest.h>

#include <set>

#include "core/error.h"

namespace distill::nn {
namespace {

TEST(BlockAllocator, HandsOutEachBlockOnce) {
  BlockAllocator allocator(5);
  std::set<int32_t> blocks;
  while (allocator.num_free() > 0) blocks.insert(allocator.allocate());
  EXPECT_EQ(blocks, (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_THROW(allocator.allocate(), core::Error);
}

TEST(BlockAllocator, FreesASharedBlockWithItsLastReference) {
  BlockAllocator allocator(2);
  const int32_t block = allocator.allocate();
  allocator.share(block);
  EXPECT_TRUE(allocator.is_shared(block));
  allocator.release(block);
  EXPECT_FALSE(allocator.is_shared(block));
  EXPECT_EQ(allocator.num_free(), 1);
  allocator.release(block);
  EXPECT_EQ(allocator.num_free(), 2);
}

TEST(BlockAllocator, ReusesABlockBeforeTouchingANewOne) {
  BlockAllocator allocator(100);
  const int32_t first = allocator.allocate();
  allocator.release(first);
  EXPECT_EQ(allocator.allocate(), first);
}

TEST(BlockAllocator, RefusesBlocksThatAreNotInUse) {
  BlockAllocator allocator(2);
  EXPECT_THROW(allocator.release(0), core::Error);
  EXPECT_THROW(allocator.share(1), core::Error);
  EXPECT_THROW(allocator.release(-1), core::Error);
  EXPECT_THROW(allocator.release(2), core::Error);
  EXPECT_THROW(BlockAllocator(0), core::Error);
}

}  // namespace
}  // namespace distill::nn
