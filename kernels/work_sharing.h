// Hands out work items one by one to all threads, so that no core idles while another still has several to do.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace distill::kernels {

// Work worth a thread of its own, in multiply-adds: waking one takes some microseconds.
inline constexpr int64_t kThreadWork = 65536;

// Runs body(item) once for each item in [0, count), on as many threads as items and `total_work` (in multiply-adds) are
// worth; in place when that is one or when already inside a parallel region. Items are started in ascending order: put
// the large ones first.
template <typename Body>
void share_work(int64_t count, int64_t total_work, const Body& body) {
  const int64_t most = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t threads = std::clamp<int64_t>(std::min(count, total_work / kThreadWork), 1, most);
  if (threads == 1) {
    for (int64_t item = 0; item < count; ++item) body(item);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t item = next.fetch_add(1); item < count; item = next.fetch_add(1)) body(item);
    }
  });
}

}  // namespace distill::kernels
