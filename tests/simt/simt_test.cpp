// The shim itself: what holds on a GPU holds here, and what is an error there is one here.
#include <gtest/gtest.h>

#include <set>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "kernels/cuda/device.cuh"
#include "tests/simt/launch.h"

namespace distill::kernels::cuda {
namespace {

using simt::Order;

TEST(Simt, RunsEveryThreadOfEveryBlockOnce) {
  std::multiset<std::pair<unsigned, unsigned>> seen;
  simt::run(3, 64, 0, Order::kAscending, [&] { seen.emplace(blockIdx.x, threadIdx.x); });
  EXPECT_EQ(seen.size(), 3U * 64U);
  EXPECT_EQ(std::set(seen.begin(), seen.end()).size(), 3U * 64U);
}

TEST(Simt, SharesMemoryBetweenTheThreadsOfABlockAcrossABarrier) {
  std::vector<float> reversed(128);
  for (const auto order : {Order::kAscending, Order::kDescending}) {
    simt::run(1, 128, 128 * sizeof(float), order, [&] {
      dynamic_shared()[threadIdx.x] = static_cast<float>(threadIdx.x);
      __syncthreads();
      reversed[threadIdx.x] = dynamic_shared()[127 - threadIdx.x];
    });
    for (int i = 0; i < 128; ++i) EXPECT_EQ(reversed[i], 127 - i);
  }
}

TEST(Simt, ShowsAMissingBarrierByTheOrderOfThreads) {
  std::vector<float> seen(64);
  const auto without_barrier = [&] {
    dynamic_shared()[threadIdx.x] = static_cast<float>(threadIdx.x);
    seen[threadIdx.x] = dynamic_shared()[63 - threadIdx.x];
  };
  simt::run(1, 64, 64 * sizeof(float), Order::kAscending, without_barrier);
  EXPECT_TRUE(std::isnan(seen[0])) << "nobody has written it yet";
  EXPECT_EQ(seen[63], 0);
  simt::run(1, 64, 64 * sizeof(float), Order::kDescending, without_barrier);
  EXPECT_TRUE(std::isnan(seen[63]));
}

TEST(Simt, ShufflesWithinAWarp) {
  std::vector<unsigned> from_first(64);
  std::vector<unsigned> from_neighbour(64);
  std::vector<unsigned> from_above(64);
  simt::run(1, 64, 0, Order::kDescending, [&] {
    from_first[threadIdx.x] = __shfl_sync(0xFFFFFFFFu, threadIdx.x, 0);
    from_neighbour[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, threadIdx.x, 1);
    from_above[threadIdx.x] = __shfl_down_sync(0xFFFFFFFFu, threadIdx.x, 16);
  });
  for (unsigned i = 0; i < 64; ++i) {
    EXPECT_EQ(from_first[i], i / 32 * 32);
    EXPECT_EQ(from_neighbour[i], i ^ 1U);
    EXPECT_EQ(from_above[i], i % 32 < 16 ? i + 16 : i);
  }
}

TEST(Simt, RefusesABarrierThatNotAllThreadsReach) {
  const auto skip = [] {
    if (threadIdx.x < 32) __syncthreads();
  };
  EXPECT_THROW(simt::run(1, 64, 0, Order::kAscending, skip), std::logic_error);
}

TEST(Simt, RefusesAShuffleInADivergedWarp) {
  const auto diverged = [] {
    if (threadIdx.x % 2 == 0) __shfl_sync(0xFFFFFFFFu, 1.0f, 0);
  };
  EXPECT_THROW(simt::run(1, 32, 0, Order::kAscending, diverged), std::logic_error);
}

TEST(Simt, PassesOnATrap) {
  EXPECT_THROW(simt::run(2, 32, 0, Order::kAscending, [] { __trap(); }), std::runtime_error);
}

TEST(Device, RoundsToBf16AsLibTorchDoes) {
  const at::Tensor x = at::cat({at::randn({4096}), at::tensor({0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-40f, 3.4e38f}),
                                at::arange(1.0f, 1.01f, 1e-5f)});
  const at::Tensor y = at::empty_like(x, at::kBFloat16);
  for (int64_t i = 0; i < x.numel(); ++i) data<Bf16>(y)[i] = store<Bf16>(data<float>(x)[i]);
  EXPECT_TRUE(at::allclose(y, x.to(at::kBFloat16), 0, 0, /*equal_nan=*/true));
  for (int64_t i = 0; i < x.numel(); ++i) data<float>(x)[i] = load(data<Bf16>(y)[i]);
  EXPECT_TRUE(at::allclose(x, y.to(at::kFloat), 0, 0, /*equal_nan=*/true));
}

TEST(Device, ReducesABlockToTheSameBitsInEveryThread) {
  for (const unsigned block : {32U, 96U, 256U, 1024U}) {
    const at::Tensor x = at::randn({block});
    const at::Tensor sums = at::empty({block});
    const at::Tensor maxima = at::empty({block});
    simt::run(1, block, 0, Order::kDescending, [&] {
      data<float>(sums)[threadIdx.x] = reduce_block<Sum>(data<float>(x)[threadIdx.x]);
      data<float>(maxima)[threadIdx.x] = reduce_block<Maximum>(data<float>(x)[threadIdx.x]);
    });
    EXPECT_TRUE(at::equal(sums, sums[0].expand_as(sums)));
    EXPECT_NEAR(sums[0].item<float>(), x.sum().item<float>(), 1e-3);
    EXPECT_TRUE(at::equal(maxima, x.max().expand_as(maxima)));
  }
}

}  // namespace
}  // namespace distill::kernels::cuda
