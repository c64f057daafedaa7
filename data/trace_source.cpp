#include "data/trace_source.h"

#include "core/shared_loop.h"

namespace distill::data {

std::vector<Trace> TraceSource::read(std::span<const size_t> indices, size_t threads) const {
  std::vector<Trace> traces(indices.size());
  core::for_each_index(indices.size(), threads, [&](size_t i) { traces[i] = read(indices[i]); });
  return traces;
}

}  // namespace distill::data
