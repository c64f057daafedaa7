#include "distill/fair_shares.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

namespace distill {

std::vector<int> fair_shares(std::span<const int64_t> sizes, int shares) {
  std::vector<size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](size_t i) { return sizes[i]; });
  std::vector<int64_t> load(static_cast<size_t>(shares));
  std::vector<int> owners(sizes.size());
  for (const size_t i : order) {
    const auto least = std::ranges::min_element(load);
    owners[i] = static_cast<int>(least - load.begin());
    *least += sizes[i];
  }
  return owners;
}

}  // namespace distill
