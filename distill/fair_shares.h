// Divides work of different sizes among several who begin together.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace distill {

// Whose each piece is, from 0 to `shares` - 1: the largest first, each to the share that has least (Graham 1969,
// "Bounds on multiprocessing timing anomalies": the largest share is at most 4/3 of what it has to be).
std::vector<int> fair_shares(std::span<const int64_t> sizes, int shares);

}  // namespace distill
