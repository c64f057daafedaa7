// The shapes of Intel AMX's tile registers: eight of up to 16 rows of 64 bytes (Intel SDM vol. 1, chapter 18). One
// instruction adds to a tile of fp32 sums [16, 16] the product of bf16 [16, 32] and [16 pairs, 16, 2]. Internal to
// kernels/.
//
// An element's products of even and of odd inputs are each summed in fp32 in ascending order; then both sums are added
// to the element. So a product has the same bits whichever factor is on the left and however large the tiles are.
#pragma once

#include <cstdint>

namespace distill::kernels {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileBytes = 64;   // of a row: 16 fp32 or pairs of bf16
inline constexpr int64_t kTileInputs = 32;  // that one instruction multiplies

// The shapes in use: the operand of LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t row_count, int64_t bytes = kTileBytes) {
    row_bytes[tile] = static_cast<uint16_t>(bytes);
    rows[tile] = static_cast<uint8_t>(row_count);
  }
  // Not _tile_loadconfig: GCC 12 believes that it reads eight bytes, and leaves the others unwritten.
  void load() const { __asm__ volatile("ldtilecfg %0" : : "m"(*this)); }
};

// Whether this machine has tiles of bf16, has_avx512_bf16() beside them, and an operating system that lends them to the
// process.
bool has_amx_bf16();

}  // namespace distill::kernels
