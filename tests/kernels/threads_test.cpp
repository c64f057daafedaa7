#include "kernels/threads.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>

#include "core/cpu_count.h"

namespace distill::kernels {
namespace {

TEST(Threads, AreAsManyAsAskedForOrAsThereAreCpus) {
  for (const int threads : {2, 1, 0, 2}) {
    set_num_threads(threads);
    EXPECT_EQ(at::get_num_threads(), threads > 0 ? threads : core::available_cpus());
    std::atomic<int64_t> sum = 0;
    at::parallel_for(0, 1000, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sum += i;
    });
    EXPECT_EQ(sum, 499500);
  }
}

}  // namespace
}  // namespace distill::kernels
