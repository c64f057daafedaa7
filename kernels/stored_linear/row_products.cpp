#include "kernels/stored_linear/row_products.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace distill::kernels {
namespace {

constexpr int64_t kStep = 64;       // inputs per step of the AVX-512 loops
constexpr int kMaxTileTokens = 12;  // that share one pass over a weight row

int64_t element_size(WeightType type) {
  switch (type) {
    case WeightType::kFp32:
      return 4;
    case WeightType::kBf16:
      return 2;
    case WeightType::kE4m3:
      return 1;
  }
  return 0;
}

WeightType weight_type(const at::Tensor& values) {
  switch (values.scalar_type()) {
    case at::kFloat:
      return WeightType::kFp32;
    case at::kBFloat16:
      return WeightType::kBf16;
    default:
      return WeightType::kE4m3;
  }
}

// ---- Portable: each row is decoded block by block to fp32 and multiplied with every token. ----

// Partial sums per lane, added up pairwise at the end: an order of its own that vectorises on every machine.
constexpr int64_t kLanes = 16;

struct PortableRow {
  const void* values;   // [in]
  const float* scales;  // [ceil(in / 128)] or null
  int64_t in;
};

template <typename T>
[[gnu::always_inline]] inline void multiply_row(const PortableRow& row, const std::byte* const* x, int64_t tokens,
                                                float* sums, int64_t stride) {
  alignas(64) std::array<float, kScaleBlock> block;
  for (int64_t t = 0; t < tokens; ++t) sums[t * stride] = 0;
  for (int64_t begin = 0; begin < row.in; begin += kScaleBlock) {
    const int64_t count = std::min(kScaleBlock, row.in - begin);
    const T* values = static_cast<const T*>(row.values) + begin;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) block[i] = to_float(values[i]);
    const float scale = row.scales ? row.scales[begin / kScaleBlock] : 1.0f;
    for (int64_t t = 0; t < tokens; ++t) {
      const float* activations = reinterpret_cast<const float*>(x[t]) + begin;
      float lanes[kLanes] = {};
      const int64_t whole = count / kLanes * kLanes;
      for (int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
        for (int64_t j = 0; j < kLanes; ++j) lanes[j] += block[i + j] * activations[i + j];
      }
      for (int64_t i = whole; i < count; ++i) lanes[i - whole] += block[i] * activations[i];
      for (int64_t width = kLanes / 2; width > 0; width /= 2) {
        for (int64_t j = 0; j < width; ++j) lanes[j] += lanes[j + width];
      }
      sums[t * stride] += scale * lanes[0];
    }
  }
}

DISTILL_MULTIVERSION void multiply_row_fp32(const PortableRow& row, const std::byte* const* x, int64_t tokens,
                                            float* sums, int64_t stride) {
  multiply_row<float>(row, x, tokens, sums, stride);
}
DISTILL_MULTIVERSION void multiply_row_bf16(const PortableRow& row, const std::byte* const* x, int64_t tokens,
                                            float* sums, int64_t stride) {
  multiply_row<Bf16>(row, x, tokens, sums, stride);
}
DISTILL_MULTIVERSION void multiply_row_e4m3(const PortableRow& row, const std::byte* const* x, int64_t tokens,
                                            float* sums, int64_t stride) {
  multiply_row<E4m3>(row, x, tokens, sums, stride);
}

const float* scales_of_row(const WeightRows& weights, int64_t row) {
  const int64_t columns = (weights.in + kScaleBlock - 1) / kScaleBlock;
  return weights.scales ? weights.scales + row / kScaleBlock * columns : nullptr;
}

const std::byte* values_of_row(const WeightRows& weights, int64_t row) {
  return static_cast<const std::byte*>(weights.values) + row * weights.in * element_size(weights.type);
}

void multiply_rows_portable(const WeightRows& weights, int64_t first_row, int64_t rows, const std::byte* const* x,
                            int64_t tokens, float* sums, int64_t stride) {
  const auto multiply = weights.type == WeightType::kFp32   ? multiply_row_fp32
                        : weights.type == WeightType::kBf16 ? multiply_row_bf16
                                                            : multiply_row_e4m3;
  for (int64_t r = 0; r < rows; ++r) {
    const PortableRow row{.values = values_of_row(weights, first_row + r),
                          .scales = scales_of_row(weights, first_row + r),
                          .in = weights.in};
    multiply(row, x, tokens, sums + r, stride);
  }
}

// ---- AVX-512 with bf16 dot products: tiles of weight rows x tokens whose sums stay in registers. ----

#ifdef __x86_64__
#define DISTILL_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16,fma")))
#define DISTILL_AVX512_BF16_INLINE \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16,fma"), always_inline)) inline

// Bytes of the bf16 that each e4m3 magnitude stands for.
struct DecodeTables {
  alignas(64) std::array<uint8_t, 128> low;
  alignas(64) std::array<uint8_t, 128> high;

  DecodeTables() {
    for (size_t magnitude = 0; magnitude < low.size(); ++magnitude) {
      const uint16_t bits = from_float<Bf16>(to_float(E4m3{static_cast<uint8_t>(magnitude)})).bits;
      low[magnitude] = static_cast<uint8_t>(bits & 0xFF);
      high[magnitude] = static_cast<uint8_t>(bits >> 8 & 0x7F);
    }
  }
};

const DecodeTables kDecodeTables;

struct Tile {
  const std::byte* const* values;  // [rows] of weights
  const float* const* scales;      // [rows], null for bf16
  const std::byte* const* x;       // [tokens]
  int64_t in;
  float* sums;
  int64_t stride;
};

// Two vectors of 32 bf16 weights.
struct Weights64 {
  __m512i first, second;
};

template <WeightType kType>
struct Loader;

template <>
struct Loader<WeightType::kBf16> {
  DISTILL_AVX512_BF16_INLINE Loader() {}
  DISTILL_AVX512_BF16_INLINE Weights64 load(const std::byte* at) const {
    return {_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64)};
  }
  // The first `count` < 64 weights and zeros.
  DISTILL_AVX512_BF16_INLINE Weights64 load_part(const std::byte* at, int64_t count) const {
    const uint64_t mask = (uint64_t{1} << count) - 1;
    return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask), at),
            _mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask >> 32), at + 64)};
  }
};

// 64 e4m3 values give 2 x 32 bf16: in each 16 bytes, the first 8 go to the first vector and the last 8 to the second.
template <>
struct Loader<WeightType::kE4m3> {
  __m512i low0, low1, high0, high1;

  DISTILL_AVX512_BF16_INLINE Loader()
      : low0(_mm512_load_si512(kDecodeTables.low.data())),
        low1(_mm512_load_si512(kDecodeTables.low.data() + 64)),
        high0(_mm512_load_si512(kDecodeTables.high.data())),
        high1(_mm512_load_si512(kDecodeTables.high.data() + 64)) {}
  DISTILL_AVX512_BF16_INLINE Weights64 decode(__m512i bytes) const {
    const __m512i low = _mm512_permutex2var_epi8(low0, bytes, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, bytes, high1);
    constexpr int kAOrBAndC = 0xF8;
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, bytes, _mm512_set1_epi8(-128), kAOrBAndC);
    return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  }
  DISTILL_AVX512_BF16_INLINE Weights64 load(const std::byte* at) const { return decode(_mm512_loadu_si512(at)); }
  DISTILL_AVX512_BF16_INLINE Weights64 load_part(const std::byte* at, int64_t count) const {
    return decode(_mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, at));
  }
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

// Rows that are worth sharing one load of the activations with, given how many tokens' sums fill the registers.
constexpr int rows_in_tile(int tokens) {
  return tokens <= 3 ? 4 : tokens <= 6 ? 2 : 1;
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
void multiply_rows_avx512(const WeightRows& weights, int64_t first_row, int64_t rows, const std::byte* const* x,
                          int64_t tokens, float* sums, int64_t stride) {
  const auto& kernels = weights.type == WeightType::kBf16 ? kBf16Tiles : kE4m3Tiles;
  const TileKernels& kernel = kernels[static_cast<size_t>(tokens - 1)];
  const int64_t full_rows = rows_in_tile(static_cast<int>(tokens));
  for (int64_t r = 0; r < rows;) {
    const int64_t tile_rows = rows - r >= full_rows ? full_rows : 1;
    std::array<const std::byte*, 4> values{};
    std::array<const float*, 4> scales{};
    for (int64_t i = 0; i < tile_rows; ++i) {
      values[static_cast<size_t>(i)] = values_of_row(weights, first_row + r + i);
      scales[static_cast<size_t>(i)] = scales_of_row(weights, first_row + r + i);
    }
    const Tile tile{
        .values = values.data(), .scales = scales.data(), .x = x, .in = weights.in, .sums = sums + r, .stride = stride};
    (tile_rows == full_rows ? kernel.full : kernel.single)(tile);
    r += tile_rows;
  }
}
#endif

bool has_avx512_bf16() {
#ifdef __x86_64__
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
                          __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

}  // namespace

RowIsa best_row_isa(at::ScalarType activations, WeightType weights) {
  const bool bf16 = activations == at::kBFloat16 && weights != WeightType::kFp32;
  return bf16 && has_avx512_bf16() ? RowIsa::kAvx512Bf16 : RowIsa::kPortable;
}

WeightRows WeightRows::of(const StoredWeight& weight) {
  return {.values = weight.values.const_data_ptr(),
          .scales = weight.scales.defined() ? weight.scales.const_data_ptr<float>() : nullptr,
          .in = weight.in(),
          .type = weight_type(weight.values)};
}

ActivationRows::ActivationRows(int64_t rows, int64_t size, RowIsa isa, WeightType weights)
    : rows_(rows),
      size_(size),
      isa_(isa),
      shuffled_(isa == RowIsa::kAvx512Bf16 && weights == WeightType::kE4m3),
      row_bytes_(isa == RowIsa::kPortable ? size * 4 : (size + kStep - 1) / kStep * kStep * 2),
      lines_(static_cast<size_t>(rows * row_bytes_) / sizeof(Line) + 1) {}

// Where input i lies in a row: see Loader<kE4m3>.
int64_t ActivationRows::index_of(int64_t i) const {
  if (!shuffled_) return i;
  const int64_t within = i % kStep;
  const int64_t lane = within / 16;
  const int64_t half = within / 8 % 2;
  return i - within + half * 32 + lane * 8 + within % 8;
}

void ActivationRows::set(int64_t row, const float* values) {
  set_part(row, 0, values, size_);
}

void ActivationRows::set(int64_t row, const Bf16* values) {
  std::byte* to = mutable_row(row);
  if (isa_ == RowIsa::kPortable) {
    auto* floats = reinterpret_cast<float*>(to);
    for (int64_t i = 0; i < size_; ++i) floats[i] = to_float(values[i]);
    return;
  }
  if (!shuffled_) {
    std::memcpy(to, values, static_cast<size_t>(size_) * sizeof(Bf16));
    return;
  }
  for (int64_t i = 0; i < size_; i += 8) {
    const auto count = static_cast<size_t>(std::min<int64_t>(8, size_ - i));
    std::memcpy(to + index_of(i) * 2, values + i, count * sizeof(Bf16));
  }
}

void ActivationRows::set_part(int64_t row, int64_t first, const float* values, int64_t count) {
  std::byte* to = mutable_row(row);
  if (isa_ == RowIsa::kPortable) {
    std::memcpy(reinterpret_cast<float*>(to) + first, values, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  auto* rounded = reinterpret_cast<Bf16*>(to);
  for (int64_t i = 0; i < count; ++i) rounded[index_of(first + i)] = from_float<Bf16>(values[i]);
}

void multiply_rows(const WeightRows& weights, int64_t first_row, int64_t rows, const ActivationRows& x, float* sums,
                   int64_t stride) {
  for (int64_t t = 0; t < x.rows(); t += kMaxTileTokens) {
    std::array<const std::byte*, kMaxTileTokens> pointers{};
    const int64_t tokens = std::min<int64_t>(kMaxTileTokens, x.rows() - t);
    for (int64_t i = 0; i < tokens; ++i) pointers[static_cast<size_t>(i)] = x.row(t + i);
    float* to = sums + t * stride;
#ifdef __x86_64__
    if (x.isa() == RowIsa::kAvx512Bf16) {
      multiply_rows_avx512(weights, first_row, rows, pointers.data(), tokens, to, stride);
      continue;
    }
#endif
    multiply_rows_portable(weights, first_row, rows, pointers.data(), tokens, to, stride);
  }
}

}  // namespace distill::kernels
