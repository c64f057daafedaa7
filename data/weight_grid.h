// The values that the share of a token can take when it is stored in a few bits.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "core/philox.h"

namespace distill::data {

// 2^bits shares from 0 to 1: level l is sin²(l / (2^bits - 1) · pi / 2), so that a step costs about the same KL
// divergence everywhere.
class WeightGrid {
 public:
  explicit WeightGrid(unsigned bits);
  // The one of so many bits, 1 to 16, which all users share.
  static const WeightGrid& of(unsigned bits);

  double share(uint32_t level) const { return shares_[level]; }
  unsigned bits() const { return static_cast<unsigned>(std::bit_width(shares_.size())) - 1; }
  uint32_t levels() const { return static_cast<uint32_t>(shares_.size()); }

  // One of the two levels around `share`, at random so that the expected share is `share`; a share within a thousandth
  // of a step of a level is that level, so that what was rounded once stays as it is.
  uint32_t round(double share, core::Philox& random) const;

 private:
  std::vector<double> shares_;
};

}  // namespace distill::data
