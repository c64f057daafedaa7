// Hands out work items to all threads, so that no core idles while another still has several to do.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace distill::kernels {

// Work worth a thread of its own, in multiply-adds: waking one takes some microseconds.
inline constexpr int64_t kThreadWork = 65536;

// Runs body(item) once for each item in [0, count), on as many threads as items and `total_work` (in multiply-adds) are
// worth; in place when that is one or when already inside a parallel region. Each thread has a run of neighbouring
// items, which it starts in ascending order, so that it reads in order what these have in memory; then it helps the
// others with theirs.
template <typename Body>
void share_work(int64_t count, int64_t total_work, const Body& body) {
  const int64_t most = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t threads = std::clamp<int64_t>(std::min(count, total_work / kThreadWork), 1, most);
  if (threads == 1) {
    for (int64_t item = 0; item < count; ++item) body(item);
    return;
  }
  struct alignas(64) Run {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Run> runs(static_cast<size_t>(threads));
  for (int64_t i = 0; i < threads; ++i) {
    Run& run = runs[static_cast<size_t>(i)];
    run.next.store(count * i / threads, std::memory_order_relaxed);
    run.end = count * (i + 1) / threads;
  }
  at::parallel_for(0, threads, 1, [&](int64_t own, int64_t) {
    for (int64_t i = own; i < own + threads; ++i) {
      Run& run = runs[static_cast<size_t>(i % threads)];
      for (int64_t item = run.next.fetch_add(1); item < run.end; item = run.next.fetch_add(1)) body(item);
    }
  });
}

}  // namespace distill::kernels
