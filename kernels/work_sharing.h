// Hands out work items one by one to all threads, so that no core idles while another still has several to do.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace distill::kernels {

// Runs body(item) once for each item in [0, count), on up to as many threads as there are items; in place when there is
// one or when already inside a parallel region. Items are started in ascending order: put the large ones first.
template <typename Body>
void share_work(int64_t count, const Body& body) {
  const int64_t threads = std::min<int64_t>(count, at::in_parallel_region() ? 1 : at::get_num_threads());
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t item = next.fetch_add(1); item < count; item = next.fetch_add(1)) body(item);
    }
  });
}

}  // namespace distill::kernels
