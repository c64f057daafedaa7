// Puts pieces of different lengths into as few bins of one capacity as it can.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace distill::data {

// Best-fit decreasing: the longest piece first, each into the fullest bin that still takes it. Each bin is a list of
// numbers of pieces. Every length is from 1 to `capacity`.
std::vector<std::vector<uint32_t>> pack(std::span<const int64_t> lengths, int64_t capacity);

}  // namespace distill::data
