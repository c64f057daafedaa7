#include "core/shared_loop.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <vector>

namespace distill::core {

void for_each_index(size_t count, size_t threads, const std::function<void(size_t)>& body) {
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) body(i);
  };
  std::vector<std::future<void>> others;  // end before what they use, whatever is thrown
  for (size_t i = 1; i < std::min(threads, count); ++i) others.push_back(std::async(std::launch::async, work));
  work();
  for (auto& other : others) other.get();
}

}  // namespace distill::core
