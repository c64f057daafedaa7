// A pseudo-random order of [0, size) that needs no memory: element i is computed from i and the key.
#pragma once

#include <array>
#include <cstdint>

namespace distill::data {

// A balanced Feistel network on the smallest even number of bits that holds `size`, walked until it lands inside (Black
// and Rogaway, "Ciphers with arbitrary finite domains", 2002). The same on every machine.
class Permutation {
 public:
  Permutation(uint64_t size, uint64_t key);
  // For index < size: the element at that place, below size, each once.
  uint64_t operator()(uint64_t index) const;

 private:
  uint64_t size_;
  unsigned half_bits_ = 1;
  std::array<uint64_t, 6> round_keys_{};
};

}  // namespace distill::data
