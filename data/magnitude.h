// Numbers of any size as a symbol of a small alphabet and some raw bits, for entropy coding.
#pragma once

#include <bit>
#include <cstdint>

namespace distill::data {

// 0 to 7 are symbols of their own. Above, a number 2^e + b·2^(e-1) + rest, with b the bit below the leading one, is the
// symbol 8 + 2(e - 3) + b and e - 1 raw bits, the rest.
struct Magnitude {
  static constexpr unsigned kSymbols = 64;  // numbers below 2^31
  uint32_t symbol = 0;
  uint32_t raw = 0;
  unsigned bits = 0;

  static constexpr unsigned bits_of(uint32_t symbol) { return symbol < 8 ? 0 : (symbol - 8) / 2 + 2; }

  static constexpr Magnitude of(uint32_t value) {
    if (value < 8) return {value, 0, 0};
    const unsigned e = static_cast<unsigned>(std::bit_width(value)) - 1;
    return {8 + 2 * (e - 3) + (value >> (e - 1) & 1), value & ((1u << (e - 1)) - 1), e - 1};
  }
  static constexpr uint32_t value(uint32_t symbol, uint32_t raw) {
    if (symbol < 8) return symbol;
    return ((2 | (symbol & 1)) << bits_of(symbol)) | raw;
  }
};

}  // namespace distill::data
