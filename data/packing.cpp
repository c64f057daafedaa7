#include "data/packing.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace distill::data {

std::vector<std::vector<uint32_t>> pack(std::span<const int64_t> lengths, int64_t capacity) {
  std::vector<uint32_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0u);
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](uint32_t piece) { return lengths[piece]; });

  std::vector<std::vector<uint32_t>> bins;
  std::multimap<int64_t, size_t> room;  // free space to the bins that have it
  for (const uint32_t piece : order) {
    const auto fit = room.lower_bound(lengths[piece]);
    size_t bin = bins.size();
    int64_t free = capacity;
    if (fit == room.end()) {
      bins.emplace_back();
    } else {
      free = fit->first;
      bin = fit->second;
      room.erase(fit);
    }
    bins[bin].push_back(piece);
    room.emplace(free - lengths[piece], bin);
  }
  return bins;
}

}  // namespace distill::data
