// Intel AMX with x as left factor; two tiles across make a panel.
#include "kernels/packed_linear/tile_kernel.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#include <algorithm>

#include "kernels/amx_tiles.h"
#include "kernels/packed_linear/packed_linear.h"

#define DISTILL_AMX __attribute__((target("amx-tile,amx-bf16,avx512f")))

namespace distill::kernels {
namespace {

constexpr int64_t kTilePairs = kTileInputs / 2;
constexpr int64_t kPanelRowBytes = kPanelWidth * 4;  // the pairs of one step of a panel, or the sums of a row
constexpr int64_t kBlockBytes = kTilePairs * kPanelRowBytes;

// The next blocks of the panel on their way from memory while this one is multiplied.
[[gnu::always_inline]] inline void prefetch_block(const char* block) {
  for (int64_t i = 0; i < kBlockBytes; i += 64) __builtin_prefetch(block + i, 0, 2);
}

void configure(int64_t rows) {
  TileConfig config;
  for (const int tile : {0, 1, 4}) config.set(tile, std::min(rows, kTileRows));
  for (const int tile : {2, 3, 5}) config.set(tile, rows > kTileRows ? rows - kTileRows : kTileRows);
  for (const int tile : {6, 7}) config.set(tile, kTilePairs);
  config.load();
}

// Up to 16 rows: sums in tiles 0 and 1, x in 4, the panel in 6 and 7. The panel comes from memory.
DISTILL_AMX void multiply_narrow(const Tile<Bf16>& tile) {
  _tile_zero(0);
  _tile_zero(1);
  const auto* panel = reinterpret_cast<const char*>(tile.panel);
  constexpr int64_t kAhead = 4 * kBlockBytes;
  for (int64_t k = 0; k < tile.steps; k += kTilePairs, panel += kBlockBytes) {
    prefetch_block(panel + kAhead);
    _tile_loadd(4, tile.x + 2 * k, tile.x_stride * 2);
    _tile_loadd(6, panel, kPanelRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel + kTileBytes, kPanelRowBytes);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, tile.sums, kPanelRowBytes);
  _tile_stored(1, tile.sums + 16, kPanelRowBytes);
}

// 17 to 32 rows: every tile loaded is used twice. Sums in tiles 0 to 3, x in 4 and 5, the panel in 6 and 7. Loads from
// the second-level cache take almost twice as long as the products.
DISTILL_AMX void multiply_wide(const Tile<Bf16>& tile) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const Bf16* lower = tile.x + kTileRows * tile.x_stride;
  const auto* panel = reinterpret_cast<const char*>(tile.panel);
  for (int64_t k = 0; k < tile.steps; k += kTilePairs, panel += kBlockBytes) {
    _tile_loadd(4, tile.x + 2 * k, tile.x_stride * 2);
    _tile_loadd(6, panel, kPanelRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel + kTileBytes, kPanelRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, lower + 2 * k, tile.x_stride * 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  float* lower_sums = tile.sums + kTileRows * kPanelWidth;
  _tile_stored(0, tile.sums, kPanelRowBytes);
  _tile_stored(1, tile.sums + 16, kPanelRowBytes);
  _tile_stored(2, lower_sums, kPanelRowBytes);
  _tile_stored(3, lower_sums + 16, kPanelRowBytes);
}

constexpr int64_t kWideRows = 2 * kTileRows;
constexpr int64_t kMaxRows = 4 * kWideRows;

// Shapes are set once for many rows: that takes as long as 12 products.
DISTILL_AMX void multiply(const Tile<Bf16>& tile, int64_t rows) {
  Tile<Bf16> part = tile;
  if (rows >= kWideRows) configure(kWideRows);
  for (; rows >= kWideRows; rows -= kWideRows) {
    multiply_wide(part);
    part.x += kWideRows * part.x_stride;
    part.sums += kWideRows * kPanelWidth;
  }
  if (rows > 0) {
    configure(rows);
    rows > kTileRows ? multiply_wide(part) : multiply_narrow(part);
  }
  _tile_release();
}

}  // namespace

const TileKernel<Bf16>* amx_tile_kernel() {
  static constexpr TileKernel<Bf16> kKernel{.max_rows = kMaxRows, .multiply = multiply};
  return has_amx_bf16() ? &kKernel : nullptr;
}

}  // namespace distill::kernels

#else

namespace distill::kernels {

const TileKernel<Bf16>* amx_tile_kernel() {
  return nullptr;
}

}  // namespace distill::kernels

#endif
