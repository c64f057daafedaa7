#include "kernels/threads.h"

#include <ATen/Parallel.h>
#include <omp.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "core/cpu_count.h"

namespace distill::kernels {
namespace {

// Keeps OpenMP's threads from spinning for milliseconds at the end of every parallel loop. libgomp spins that long by
// default, and while something else runs on one of the CPUs the thread that spins keeps the one it waits for from
// running: generation becomes tens of times slower. It spins for microseconds only, long enough between two of our
// loops, once it manages more threads than there are CPUs ("GOMP_SPINCOUNT" in libgomp's manual; the variable itself
// would have to be set before the program starts). So this thread, which sleeps, owns a second one that does nothing.
class SurplusThread {
 public:
  SurplusThread() : thread_([this] { park(); }) {}
  ~SurplusThread() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  SurplusThread(const SurplusThread&) = delete;
  SurplusThread& operator=(const SurplusThread&) = delete;

 private:
  void park() {
    int started = 0;
#pragma omp parallel num_threads(2) reduction(+ : started)
    started += 1;
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return done_; });
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  bool done_ = false;
  std::thread thread_;
};

}  // namespace

void set_num_threads(int threads) {
  at::set_num_threads(threads > 0 ? threads : core::available_cpus());
  if (at::get_num_threads() > 1) static const SurplusThread surplus;
}

}  // namespace distill::kernels
