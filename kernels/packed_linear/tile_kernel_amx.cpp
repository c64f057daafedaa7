// Intel AMX: a tile register holds 16 rows of 64 bytes, and one instruction multiplies 16 rows of 16 pairs of bf16 with
// 16 pairs of 16 outputs (Intel SDM vol. 1, chapter 18). Four tiles across make a panel.
#include "kernels/packed_linear/tile_kernel.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#define DISTILL_AMX __attribute__((target("amx-tile,amx-bf16,avx512f")))

namespace distill::kernels {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileBytes = 64;          // of a row: 16 pairs of bf16, or 16 fp32 sums
constexpr int64_t kTilePairs = 16;          // pairs of inputs that one instruction takes
constexpr int64_t kPanelRowBytes = 64 * 4;  // the 64 pairs of one step of a panel
constexpr int64_t kBlockBytes = kTilePairs * kPanelRowBytes;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t row_count) {
    row_bytes[tile] = kTileBytes;
    rows[tile] = static_cast<uint8_t>(row_count);
  }
};

// The next block of the panel on its way from memory while this one is multiplied.
[[gnu::always_inline]] inline void prefetch_block(const char* block) {
  for (int64_t i = 0; i < kBlockBytes; i += 64) __builtin_prefetch(block + i, 0, 2);
}

// Up to 16 rows: sums in tiles 0 to 3, x in 4, the panel in 5.
DISTILL_AMX void multiply_narrow(const Tile<Bf16>& tile, int64_t rows) {
  TileConfig config;
  for (const int i : {0, 1, 2, 3, 4}) config.set(i, rows);
  config.set(5, kTilePairs);
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const auto* panel = reinterpret_cast<const char*>(tile.panel);
  constexpr int64_t kAhead = 2 * kBlockBytes;
  for (int64_t k = 0; k < tile.steps; k += kTilePairs, panel += kBlockBytes) {
    prefetch_block(panel + kAhead);
    _tile_loadd(4, tile.x + 2 * k, tile.x_stride * 2);
    _tile_loadd(5, panel, kPanelRowBytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(5, panel + kTileBytes, kPanelRowBytes);
    _tile_dpbf16ps(1, 4, 5);
    _tile_loadd(5, panel + 2 * kTileBytes, kPanelRowBytes);
    _tile_dpbf16ps(2, 4, 5);
    _tile_loadd(5, panel + 3 * kTileBytes, kPanelRowBytes);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, tile.sums, kPanelRowBytes);
  _tile_stored(1, tile.sums + 16, kPanelRowBytes);
  _tile_stored(2, tile.sums + 32, kPanelRowBytes);
  _tile_stored(3, tile.sums + 48, kPanelRowBytes);
  _tile_release();
}

// 17 to 32 rows: each half of the panel against both halves of the rows, so that every tile loaded is used twice. Sums
// in tiles 0 to 3, x in 4 and 5, the panel in 6 and 7.
DISTILL_AMX void multiply_wide(const Tile<Bf16>& tile, int64_t rows) {
  TileConfig config;
  for (const int i : {0, 1, 4}) config.set(i, kTileRows);
  for (const int i : {2, 3, 5}) config.set(i, rows - kTileRows);
  for (const int i : {6, 7}) config.set(i, kTilePairs);
  _tile_loadconfig(&config);
  const Bf16* lower = tile.x + kTileRows * tile.x_stride;
  for (int64_t half = 0; half < 2; ++half) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const char* panel = reinterpret_cast<const char*>(tile.panel) + half * 2 * kTileBytes;
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
    float* sums = tile.sums + half * 32;
    float* lower_sums = sums + kTileRows * 64;
    _tile_stored(0, sums, kPanelRowBytes);
    _tile_stored(1, sums + 16, kPanelRowBytes);
    _tile_stored(2, lower_sums, kPanelRowBytes);
    _tile_stored(3, lower_sums + 16, kPanelRowBytes);
  }
  _tile_release();
}

DISTILL_AMX void multiply(const Tile<Bf16>& tile, int64_t rows) {
  rows <= kTileRows ? multiply_narrow(tile, rows) : multiply_wide(tile, rows);
}

// Linux lends the tile registers' state to a process that asks (Documentation/arch/x86/xstate.rst).
bool request_tile_state() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool cpu_has_amx_bf16() {
  constexpr uint32_t kAmxBf16 = 1u << 22;
  constexpr uint32_t kAmxTile = 1u << 24;
  uint32_t a = 7;
  uint32_t b = 0;
  uint32_t c = 0;
  uint32_t d = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (d & kAmxBf16) != 0 && (d & kAmxTile) != 0 && __builtin_cpu_supports("avx512f");
}

}  // namespace

const TileKernel<Bf16>* amx_tile_kernel() {
  static const TileKernel<Bf16> kernel{.max_rows = 2 * kTileRows, .multiply = multiply};
  static const bool available = cpu_has_amx_bf16() && request_tile_state();
  return available ? &kernel : nullptr;
}

}  // namespace distill::kernels

#else

namespace distill::kernels {

const TileKernel<Bf16>* amx_tile_kernel() {
  return nullptr;
}

}  // namespace distill::kernels

#endif
