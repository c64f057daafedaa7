// Intel AMX with the weights as left factor, whose rows are outputs: a block of an output is decoded into one vector,
// which is a row of a tile. The two tiles of a block lie in one of two buffers in turn, so that what a tile loads has
// left the store buffer. At 4 GHz and from a near cache, 32 outputs and 32 inputs take 43 ns in 4 bits and 62 ns in 8,
// all of it decoding: the products of 16 rows take 9 ns of another unit.
#include "kernels/packed_linear/block_kernel.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#include <algorithm>

#include "kernels/amx_tiles.h"
#include "kernels/packed_linear/block_decode.h"

#define DISTILL_AMX_BLOCKS __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16")))

namespace distill::kernels {
namespace {

constexpr int64_t kWidth = kPanelWidth;
constexpr int64_t kGroup = 16;                               // rows of x that are columns of one tile
constexpr int64_t kStepValues = kTileRows * kTileBytes / 2;  // of a group, for one block
constexpr int64_t kAhead = 8192;                             // bytes; the next panel follows in memory

// Groups of 16 rows, each [pairs, 16 rows, 2], missing rows being zero. A single row needs no arranging.
DISTILL_AMX_BLOCKS const Bf16* arrange(const Bf16* x, int64_t x_stride, int64_t rows, int64_t blocks, Bf16* buffer) {
  if (rows == 1) return x;
  Bf16* to = buffer;
  for (int64_t first = 0; first < rows; first += kGroup) {
    for (int64_t b = 0; b < blocks; ++b, to += kStepValues) {
      __m512i pairs[kGroup];
      for (int64_t r = 0; r < kGroup; ++r) {
        pairs[r] = first + r < rows ? _mm512_loadu_si512(x + (first + r) * x_stride + b * kBlockInputs)
                                    : _mm512_setzero_si512();
      }
      transpose(pairs);
      for (int64_t r = 0; r < kGroup; ++r) _mm512_store_si512(to + r * kTileInputs, pairs[r]);
    }
  }
  return buffer;
}

// Both halves of a decoded block of 32 outputs.
struct alignas(64) DecodedBlock {
  Bf16 values[2][kTileRows * kTileInputs];
};

template <bool kFourBits>
DISTILL_AVX512_BLOCKS_INLINE void decode_block(const BlockPanel& panel, int64_t block, DecodedBlock& decoded) {
  constexpr int64_t kBlockBytes = kWidth * kBlockInputs / (kFourBits ? 2 : 1);
  const int64_t scales_per_block = panel.block_scales();
  const auto* codes = static_cast<const uint8_t*>(panel.codes) + block * kBlockBytes;
  const uint16_t* scales = panel.scales + block * scales_per_block;
  const uint16_t* mins = panel.has_mins ? scales + kWidth : nullptr;
#pragma GCC unroll 16
  for (int64_t i = 0; i < kBlockBytes; i += 64) __builtin_prefetch(codes + kAhead + i, 0, 2);
  for (int64_t i = 0; i < scales_per_block; i += 32) __builtin_prefetch(scales + kAhead / 8 + i, 0, 2);
#pragma GCC unroll 2
  for (int64_t half = 0; half < 2; ++half) {
    const int64_t first = half * kTileOutputs;
    __m512i rows[kTileOutputs];
    decode_tile<kFourBits>(codes + half * kBlockBytes / 2, scales + first, mins ? mins + first : nullptr, rows);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kTileOutputs; ++r) {
      _mm512_store_si512(decoded.values[half] + r * kTileInputs, rows[r]);
    }
  }
}

// Sums of outputs 0 to 15 in tiles 0 (first group of rows) and 2 (second), of outputs 16 to 31 in 1 and 3; weights in 4
// and 5, x in 6 and 7.
template <bool kTwoGroups>
DISTILL_AMX_BLOCKS [[gnu::always_inline]] inline void multiply_block(const DecodedBlock& decoded, const Bf16* x,
                                                                     int64_t group_values, int64_t row_bytes) {
  _tile_loadd(6, x, row_bytes);
  _tile_loadd(4, decoded.values[0], kTileBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(5, decoded.values[1], kTileBytes);
  _tile_dpbf16ps(1, 5, 6);
  if constexpr (kTwoGroups) {
    _tile_loadd(7, x + group_values, row_bytes);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// sums[r][outputs of one half] of one group of rows, from tile [outputs, rows].
DISTILL_AVX512_BLOCKS_INLINE void write_sums(const float* tile, int64_t rows, float* sums) {
  __m512i columns[kGroup];
  for (int64_t i = 0; i < kGroup; ++i) columns[i] = _mm512_load_si512(tile + i * kGroup);
  transpose(columns);
#pragma GCC unroll 16
  for (int64_t r = 0; r < kGroup; ++r) {
    if (r < rows) _mm512_storeu_si512(sums + r * kWidth, columns[r]);
  }
}

// Of a row of x as the tiles load it.
int64_t bytes_of_row(int64_t rows) {
  return rows == 1 ? kTileBytes / kGroup : kTileBytes;
}

DISTILL_AMX_BLOCKS void begin(int64_t rows) {
  TileConfig config;
  for (const int tile : {0, 1, 2, 3, 6, 7}) config.set(tile, kTileRows, bytes_of_row(rows));
  for (const int tile : {4, 5}) config.set(tile, kTileRows);
  config.load();
}

DISTILL_AMX_BLOCKS void end() {
  _tile_release();
}

template <bool kFourBits, bool kTwoGroups>
DISTILL_AMX_BLOCKS void multiply_as(const BlockPanel& panel, const Bf16* x, int64_t rows, float* sums) {
  const int64_t row_bytes = bytes_of_row(rows);
  const int64_t step_values = kTileRows * row_bytes / 2;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  DecodedBlock decoded[2];
  decode_block<kFourBits>(panel, 0, decoded[0]);
  for (int64_t b = 0; b < panel.blocks; ++b) {
    if (b + 1 < panel.blocks) decode_block<kFourBits>(panel, b + 1, decoded[(b + 1) % 2]);
    multiply_block<kTwoGroups>(decoded[b % 2], x + b * step_values, panel.blocks * step_values, row_bytes);
  }
  if (rows == 1) {
    _tile_stored(0, sums, row_bytes);
    _tile_stored(1, sums + kTileRows, row_bytes);
  } else {
    alignas(64) float tiles[4][kTileRows * kGroup];
    _tile_stored(0, tiles[0], kTileBytes);
    _tile_stored(1, tiles[1], kTileBytes);
    if constexpr (kTwoGroups) {
      _tile_stored(2, tiles[2], kTileBytes);
      _tile_stored(3, tiles[3], kTileBytes);
    }
    for (int64_t i = 0; i < (kTwoGroups ? 4 : 2); ++i) {
      const int64_t first = i / 2 * kGroup;
      write_sums(tiles[i], std::min(kGroup, rows - first), sums + first * kWidth + i % 2 * kTileOutputs);
    }
  }
}

void multiply(const BlockPanel& panel, const Bf16* x, int64_t rows, float* sums) {
  if (panel.four_bits) {
    rows <= kGroup ? multiply_as<true, false>(panel, x, rows, sums) : multiply_as<true, true>(panel, x, rows, sums);
  } else {
    rows <= kGroup ? multiply_as<false, false>(panel, x, rows, sums) : multiply_as<false, true>(panel, x, rows, sums);
  }
}

}  // namespace

const BlockKernel* block_kernel() {
  static constexpr BlockKernel kKernel{.arrange = arrange, .begin = begin, .multiply = multiply, .end = end};
  return has_amx_bf16() ? &kKernel : nullptr;
}

}  // namespace distill::kernels

#else

namespace distill::kernels {

const BlockKernel* block_kernel() {
  return nullptr;
}

}  // namespace distill::kernels

#endif
