#include "data/trace_source.h"

#include <algorithm>
#include <atomic>
#include <future>

namespace distill::data {

std::vector<Trace> TraceSource::read(std::span<const size_t> indices, size_t threads) const {
  std::vector<Trace> traces(indices.size());
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < indices.size(); i = next++) traces[i] = read(indices[i]);
  };
  std::vector<std::future<void>> others;  // end before what they use, whatever is thrown
  for (size_t i = 1; i < std::min(threads, indices.size()); ++i) others.push_back(std::async(std::launch::async, work));
  work();
  for (auto& other : others) other.get();
  return traces;
}

}  // namespace distill::data
