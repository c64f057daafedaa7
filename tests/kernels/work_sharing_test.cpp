#include "kernels/work_sharing.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/threads.h"

namespace distill::kernels {
namespace {

TEST(WorkSharing, DoesEveryItemOnceOnAnyNumberOfThreads) {
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    for (const int64_t count : {0, 1, 2, 7, 64, 1001}) {
      std::vector<std::atomic<int>> done(static_cast<size_t>(count));
      share_work(count, 100 * kThreadWork, [&](int64_t item) { ++done[static_cast<size_t>(item)]; });
      for (const auto& times : done) EXPECT_EQ(times, 1) << count << " items on " << threads << " threads";
    }
  }
  set_num_threads(0);
}

TEST(WorkSharing, StaysInPlaceForLittleWork) {
  std::set<std::thread::id> threads;
  share_work(100, kThreadWork, [&](int64_t) { threads.insert(std::this_thread::get_id()); });
  EXPECT_EQ(threads, std::set{std::this_thread::get_id()});
}

// The first item does not end before another of the same thread has been done.
TEST(WorkSharing, LetsNoThreadIdleWhileAnotherHasSeveralItems) {
  set_num_threads(2);
  std::promise<void> helped;
  std::atomic<int> others{0};
  bool in_time = false;
  share_work(20, 100 * kThreadWork, [&](int64_t item) {
    if (item == 0) in_time = helped.get_future().wait_for(std::chrono::seconds(30)) == std::future_status::ready;
    if (item > 0 && item < 10 && ++others == 1) helped.set_value();
  });
  EXPECT_TRUE(in_time);
  set_num_threads(0);
}

TEST(WorkSharing, PassesOnWhatAnItemThrows) {
  EXPECT_THROW(share_work(10, 100 * kThreadWork, [](int64_t) { throw std::runtime_error("no"); }), std::runtime_error);
}

}  // namespace
}  // namespace distill::kernels
