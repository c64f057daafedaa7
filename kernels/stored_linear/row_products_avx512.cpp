// AVX-512 with bf16 dot products: tiles of weight rows x tokens whose sums stay in registers.
#include "kernels/stored_linear/row_kernels.h"

#ifdef __x86_64__
#include <algorithm>
#include <utility>

#include "kernels/cpu_features.h"
#include "kernels/stored_linear/weight_loader.h"

namespace distill::kernels {
namespace {

constexpr int64_t kStep = kLoadStep;
constexpr int kMaxTileTokens = 12;  // that share one pass over a weight row
// So few tokens wait for memory, so they take one row after the other, which is one stretch of memory: four at a time,
// each short, and nothing fetched ahead take 1.7 times as long (Zen 4).
constexpr int kMaxWaitingTokens = 3;
constexpr int64_t kFetchAhead = 4096;  // bytes

struct Tile {
  const std::byte* const* values;  // [rows] of weights
  const float* const* scales;      // [rows], null for bf16
  const std::byte* const* x;       // [tokens]
  int64_t in;
  float* sums;
  int64_t stride;
};

template <int kRows, int kTokens>
using Sums = __m512[kRows][kTokens];

template <int kRows, int kTokens>
DISTILL_AVX512_BF16_INLINE void clear(Sums<kRows, kTokens>& sums) {
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) sums[r][t] = _mm512_setzero_ps();
  }
}

// Adds the products of inputs [64 * step, 64 * step + 64) or, with kPart, of those before `in`.
template <WeightType kType, int kRows, int kTokens, bool kPart>
DISTILL_AVX512_BF16_INLINE void add_step(const Tile& tile, const Loader<kType>& loader, int64_t step,
                                         Sums<kRows, kTokens>& sums) {
  constexpr int64_t kBytes = kType == WeightType::kE4m3 ? kStep : 2 * kStep;
  for (int r = 0; r < kRows; ++r) {
    const std::byte* at = tile.values[r] + step * kBytes;
    for (int64_t line = 0; line < kBytes; line += 64) __builtin_prefetch(at + kFetchAhead + line);
    const Weights64 weights = kPart ? loader.load_part(at, tile.in - step * kStep) : loader.load(at);
    for (int t = 0; t < kTokens; ++t) {
      const std::byte* x = tile.x[t] + step * 2 * kStep;
      sums[r][t] = _mm512_dpbf16_ps(sums[r][t], (__m512bh)_mm512_loadu_si512(x), (__m512bh)weights.first);
      sums[r][t] = _mm512_dpbf16_ps(sums[r][t], (__m512bh)_mm512_loadu_si512(x + 64), (__m512bh)weights.second);
    }
  }
}

// The sum of the lanes, halves first. (GCC 12 warns about its own _mm512_reduce_add_ps.)
DISTILL_AVX512_BF16_INLINE float sum_of(__m512 v) {
  const auto eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto four =
      __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

template <int kRows, int kTokens>
DISTILL_AVX512_BF16_INLINE void finish(const Tile& tile, const Sums<kRows, kTokens>& sums) {
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) tile.sums[t * tile.stride + r] = sum_of(sums[r][t]);
  }
}

template <int kRows, int kTokens>
DISTILL_AVX512_BF16 void multiply_tile_bf16(const Tile& tile) {
  const Loader<WeightType::kBf16> loader;
  Sums<kRows, kTokens> sums;
  clear<kRows, kTokens>(sums);
  const int64_t steps = tile.in / kStep;
  for (int64_t step = 0; step < steps; ++step) {
    add_step<WeightType::kBf16, kRows, kTokens, false>(tile, loader, step, sums);
  }
  if (steps * kStep < tile.in) add_step<WeightType::kBf16, kRows, kTokens, true>(tile, loader, steps, sums);
  finish<kRows, kTokens>(tile, sums);
}

template <int kRows, int kTokens>
DISTILL_AVX512_BF16 void multiply_tile_e4m3(const Tile& tile) {
  const Loader<WeightType::kE4m3> loader;
  Sums<kRows, kTokens> totals;
  clear<kRows, kTokens>(totals);
  for (int64_t begin = 0; begin < tile.in; begin += kScaleBlock) {
    const int64_t end = std::min(tile.in, begin + kScaleBlock);
    Sums<kRows, kTokens> sums;
    clear<kRows, kTokens>(sums);
    int64_t step = begin / kStep;
    for (; (step + 1) * kStep <= end; ++step) {
      add_step<WeightType::kE4m3, kRows, kTokens, false>(tile, loader, step, sums);
    }
    if (step * kStep < end) add_step<WeightType::kE4m3, kRows, kTokens, true>(tile, loader, step, sums);
    for (int r = 0; r < kRows; ++r) {
      const __m512 scale = _mm512_set1_ps(tile.scales[r][begin / kScaleBlock]);
      for (int t = 0; t < kTokens; ++t) totals[r][t] = _mm512_fmadd_ps(sums[r][t], scale, totals[r][t]);
    }
  }
  finish<kRows, kTokens>(tile, totals);
}

// Rows that share one load of the activations, given how many tokens' sums fill the registers.
constexpr int rows_in_tile(int tokens) {
  return tokens > kMaxWaitingTokens && tokens <= 6 ? 2 : 1;
}

using MultiplyTile = void (*)(const Tile&);

// [tokens - 1]: a tile of rows_in_tile(tokens) rows, and one of a single row.
struct TileKernels {
  MultiplyTile full, single;
};

template <WeightType kType, size_t... kTokens>
constexpr std::array<TileKernels, kMaxTileTokens> tile_kernels(std::index_sequence<kTokens...>) {
  if constexpr (kType == WeightType::kBf16) {
    return {
        TileKernels{multiply_tile_bf16<rows_in_tile(kTokens + 1), kTokens + 1>, multiply_tile_bf16<1, kTokens + 1>}...};
  } else {
    return {
        TileKernels{multiply_tile_e4m3<rows_in_tile(kTokens + 1), kTokens + 1>, multiply_tile_e4m3<1, kTokens + 1>}...};
  }
}

constexpr auto kBf16Tiles = tile_kernels<WeightType::kBf16>(std::make_index_sequence<kMaxTileTokens>());
constexpr auto kE4m3Tiles = tile_kernels<WeightType::kE4m3>(std::make_index_sequence<kMaxTileTokens>());

// At most kMaxTileTokens tokens.
void multiply_tokens(const WeightRows& weights, int64_t first_row, int64_t rows, const std::byte* const* x,
                     int64_t tokens, float* sums, int64_t stride) {
  const auto& kernels = weights.type == WeightType::kBf16 ? kBf16Tiles : kE4m3Tiles;
  const TileKernels& kernel = kernels[static_cast<size_t>(tokens - 1)];
  const int64_t full_rows = rows_in_tile(static_cast<int>(tokens));
  for (int64_t r = 0; r < rows;) {
    const int64_t tile_rows = rows - r >= full_rows ? full_rows : 1;
    std::array<const std::byte*, 2> values{};
    std::array<const float*, 2> scales{};
    for (int64_t i = 0; i < tile_rows; ++i) {
      values[static_cast<size_t>(i)] = weights.values_of(first_row + r + i);
      scales[static_cast<size_t>(i)] = weights.scales_of(first_row + r + i);
    }
    const Tile tile{
        .values = values.data(), .scales = scales.data(), .x = x, .in = weights.in, .sums = sums + r, .stride = stride};
    (tile_rows == full_rows ? kernel.full : kernel.single)(tile);
    r += tile_rows;
  }
}

}  // namespace

void multiply_rows_avx512(const WeightRows& weights, int64_t first_row, int64_t rows, const ActivationRows& x,
                          float* sums, int64_t stride) {
  for (int64_t t = 0; t < x.rows(); t += kMaxTileTokens) {
    std::array<const std::byte*, kMaxTileTokens> pointers{};
    const int64_t tokens = std::min<int64_t>(kMaxTileTokens, x.rows() - t);
    for (int64_t i = 0; i < tokens; ++i) pointers[static_cast<size_t>(i)] = x.row(t + i);
    multiply_tokens(weights, first_row, rows, pointers.data(), tokens, sums + t * stride, stride);
  }
}

bool has_avx512_rows() {
  static const bool has = has_avx512_bf16() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni");
  return has;
}

}  // namespace distill::kernels

#else

namespace distill::kernels {

void multiply_rows_avx512(const WeightRows&, int64_t, int64_t, const ActivationRows&, float*, int64_t) {}
bool has_avx512_rows() {
  return false;
}

}  // namespace distill::kernels

#endif
