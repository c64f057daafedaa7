#include "data/weight_grid.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>
#include <numbers>
#include <optional>

#include "core/error.h"

namespace distill::data {

WeightGrid::WeightGrid(unsigned bits) : shares_(size_t{1} << bits) {
  const double last = static_cast<double>(shares_.size() - 1);
  for (size_t level = 0; level < shares_.size(); ++level) {
    const double sine = std::sin(static_cast<double>(level) / last * std::numbers::pi / 2);
    shares_[level] = sine * sine;
  }
  shares_.back() = 1;
}

const WeightGrid& WeightGrid::of(unsigned bits) {
  static std::array<std::once_flag, 17> made;
  static std::array<std::optional<WeightGrid>, 17> grids;
  core::check(bits >= 1 && bits < grids.size(), "a grid of {} bits", bits);
  std::call_once(made[bits], [bits] { grids[bits].emplace(bits); });
  return *grids[bits];
}

uint32_t WeightGrid::round(double share, core::Philox& random) const {
  share = std::clamp(share, 0.0, 1.0);
  const double position = std::asin(std::sqrt(share)) * 2 / std::numbers::pi * static_cast<double>(levels() - 1);
  auto below = std::min(static_cast<uint32_t>(position), levels() - 2);
  if (shares_[below] > share && below > 0) --below;
  const double fraction = (share - shares_[below]) / (shares_[below + 1] - shares_[below]);
  constexpr double kSnap = 1e-3;
  if (fraction < kSnap) return below;
  if (fraction > 1 - kSnap) return below + 1;
  return below + (random.next_double() < fraction ? 1 : 0);
}

}  // namespace distill::data
