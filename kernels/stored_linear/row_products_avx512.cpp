// AVX-512 with bf16 dot products. A vector holds 8 inputs of each of 4 weight rows, so that 16 bytes of activations,
// loaded into all four lanes, meet four rows, and a row's sums take four numbers instead of sixteen.
#include "kernels/stored_linear/row_kernels.h"

#ifdef __x86_64__
#include <algorithm>
#include <array>
#include <utility>

#include "kernels/cpu_features.h"
#include "kernels/stored_linear/weight_loader.h"

namespace distill::kernels {
namespace {

constexpr int kGroupRows = 4;  // in one vector
constexpr int kGroups = 4;
constexpr int64_t kPanelRows = kGroups * kGroupRows;
constexpr int64_t kChunk = 8;  // inputs in one vector
constexpr int64_t kChunkBytes = 2 * kChunk;
constexpr int64_t kLine = 64;

// So few tokens wait for memory and take eight rows at a time, decoded in registers as they come.
constexpr int kMaxWaitingTokens = 5;
constexpr int64_t kFetchAhead = 16384;  // bytes, at least
// More multiply panels: 16 rows, decoded block by block into the first-level cache, in tiles of rows x tokens whose
// sums stay in registers.
constexpr int kMaxTileTokens = 6;   // 6 x 4 sums fill the registers
constexpr int64_t kMaxTokens = 96;  // whose totals lie beside the panel

constexpr int64_t value_bytes(WeightType type) {
  return type == WeightType::kE4m3 ? 1 : 2;
}

// At most 16 rows, all in one row of scale blocks.
struct Rows {
  std::array<const std::byte*, kPanelRows> values;  // of the last one also where there are fewer
  int64_t count;
  int64_t in;
  const float* scales;    // of their blocks, or null
  const std::byte* next;  // what is read after them

  int64_t groups() const { return (count + kGroupRows - 1) / kGroupRows; }
  const std::byte* const* group(int64_t index) const { return values.data() + index * kGroupRows; }
  float scale(int64_t begin) const { return scales != nullptr ? scales[begin / kScaleBlock] : 1.0f; }
};

// [groups] of [4 rows][4] partial sums of one token.
struct Totals {
  __m512 of[kGroups];
};

// A line of each of four rows as bf16: [chunks][4 rows][8 inputs]. With kPart its first `bytes` < 64 and zeros.
template <WeightType kType>
struct Line {
  static constexpr int64_t kInputs = kLine / value_bytes(kType);
  static constexpr int64_t kChunks = kInputs / kChunk;
  __m512i chunks[kChunks];

  template <bool kPart>
  DISTILL_AVX512_BF16_INLINE void load(const std::byte* const* rows, int64_t offset, int64_t bytes) {
    __m512i row[kGroupRows];
    for (int r = 0; r < kGroupRows; ++r) {
      row[r] = kPart ? _mm512_maskz_loadu_epi8((uint64_t{1} << bytes) - 1, rows[r] + offset)
                     : _mm512_loadu_si512(rows[r] + offset);
    }
    // Transposes 4 x 4 times 16 bytes.
    const __m512i upper_left = _mm512_shuffle_i32x4(row[0], row[1], 0x44);
    const __m512i upper_right = _mm512_shuffle_i32x4(row[0], row[1], 0xEE);
    const __m512i lower_left = _mm512_shuffle_i32x4(row[2], row[3], 0x44);
    const __m512i lower_right = _mm512_shuffle_i32x4(row[2], row[3], 0xEE);
    const __m512i columns[4] = {
        _mm512_shuffle_i32x4(upper_left, lower_left, 0x88), _mm512_shuffle_i32x4(upper_left, lower_left, 0xDD),
        _mm512_shuffle_i32x4(upper_right, lower_right, 0x88), _mm512_shuffle_i32x4(upper_right, lower_right, 0xDD)};
    if constexpr (kType == WeightType::kE4m3) {
      Loader<kType>::decode_four(columns, chunks);
    } else {
      for (int i = 0; i < 4; ++i) chunks[i] = columns[i];
    }
  }
};

// The chunk at `x` for each of four rows.
DISTILL_AVX512_BF16_INLINE __m512bh load_chunk(const std::byte* x) {
  return (__m512bh)_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(x)));
}

template <int kTokens, int kTileGroups>
DISTILL_AVX512_BF16_INLINE void clear(__m512 (&sums)[kTokens][kTileGroups]) {
  for (auto& token : sums) {
    for (__m512& sum : token) sum = _mm512_setzero_ps();
  }
}

// Into the second-level cache: the first would lose again what is read so much later.
DISTILL_AVX512_BF16_INLINE void fetch(const std::byte* from, int64_t lines) {
  for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(from + i * kLine, 0, 2);
}

// Adds the products of one line of each of two groups of rows, which share the loads of activations. With kPart the
// line ends before `end`.
template <WeightType kType, int kTokens, bool kPart>
DISTILL_AVX512_BF16_INLINE void add_lines(const std::byte* const* rows, int64_t input, int64_t end,
                                          const std::byte* const* x, __m512 (&sums)[kTokens][2]) {
  Line<kType> lines[2];
  for (int g = 0; g < 2; ++g) {
    lines[g].template load<kPart>(rows + g * kGroupRows, input * value_bytes(kType),
                                  (end - input) * value_bytes(kType));
  }
  for (int64_t chunk = 0; chunk < Line<kType>::kChunks; ++chunk) {
    for (int t = 0; t < kTokens; ++t) {
      const __m512bh activations = load_chunk(x[t] + input * 2 + chunk * kChunkBytes);
      for (int g = 0; g < 2; ++g) {
        sums[t][g] = _mm512_dpbf16_ps(sums[t][g], activations, (__m512bh)lines[g].chunks[chunk]);
      }
    }
  }
}

// The totals of groups `group` and the next. Of eight rows at once the processor foresees little: what will be read at
// least kFetchAhead later is fetched, in the order in which it lies in memory.
template <WeightType kType, int kTokens>
DISTILL_AVX512_BF16 void multiply_pair(const Rows& rows, int64_t group, const std::byte* const* x, Totals* totals) {
  constexpr int64_t kPairBlockBytes = 2 * kGroupRows * kScaleBlock * value_bytes(kType);
  constexpr int64_t kInputs = Line<kType>::kInputs;
  const std::byte* const* eight = rows.group(group);
  const int64_t left = (rows.count - group * kGroupRows) * rows.in * value_bytes(kType);
  int64_t ahead = std::max(kFetchAhead, 2 * kGroupRows * rows.in * value_bytes(kType));
  __m512 all[kTokens][2];
  clear(all);
  for (int64_t begin = 0; begin < rows.in; begin += kScaleBlock, ahead += kPairBlockBytes) {
    const std::byte* fetched = ahead < left ? eight[0] + ahead : rows.next + (ahead - left);
    __m512 sums[kTokens][2];
    clear(sums);
    const int64_t end = std::min(rows.in, begin + kScaleBlock);
    int64_t i = begin;
    for (; i + kInputs <= end; i += kInputs, fetched += 2 * kGroupRows * kLine) {
      fetch(fetched, 2 * kGroupRows);
      add_lines<kType, kTokens, false>(eight, i, end, x, sums);
    }
    if (i < end) add_lines<kType, kTokens, true>(eight, i, end, x, sums);
    const __m512 scale = _mm512_set1_ps(rows.scale(begin));
    for (int t = 0; t < kTokens; ++t) {
      for (int g = 0; g < 2; ++g) all[t][g] = _mm512_fmadd_ps(sums[t][g], scale, all[t][g]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int g = 0; g < 2; ++g) totals[t].of[group + g] = all[t][g];
  }
}

// [groups][chunks] of [4 rows][8 inputs] bf16.
struct Panel {
  static constexpr int64_t kChunks = kScaleBlock / kChunk;
  __m512i of[kGroups][kChunks];
};

// Inputs [begin, begin + 128) of all rows, or as many as there are; returns in how many chunks. As much of the rows
// after these is fetched.
template <WeightType kType>
DISTILL_AVX512_BF16_INLINE int64_t decode_block(const Rows& rows, int64_t begin, Panel& panel) {
  constexpr int64_t kBytes = value_bytes(kType);
  constexpr int64_t kInputs = Line<kType>::kInputs;
  const int64_t end = std::min(rows.in, begin + kScaleBlock);
  const std::byte* fetched = rows.next + begin * kPanelRows * kBytes;
  for (int64_t g = 0; g < rows.groups(); ++g) {
    const auto store = [&](const Line<kType>& line, int64_t i) {
      __m512i* to = panel.of[g] + (i - begin) / kChunk;
      for (const __m512i& chunk : line.chunks) *to++ = chunk;
    };
    Line<kType> line;
    int64_t i = begin;
    for (; i + kInputs <= end; i += kInputs, fetched += kGroupRows * kLine) {
      fetch(fetched, kGroupRows);
      line.template load<false>(rows.group(g), i * kBytes, kLine);
      store(line, i);
    }
    if (i < end) {
      line.template load<true>(rows.group(g), i * kBytes, (end - i) * kBytes);
      store(line, i);
    }
  }
  return (end - begin + kInputs - 1) / kInputs * Line<kType>::kChunks;
}

struct Tile {
  const Panel& panel;
  int64_t chunks;
  const std::byte* x;  // of the first token, the first chunk
  int64_t x_stride;    // bytes
  float scale;
  Totals* totals;  // [tokens]
};

template <int kTileGroups, int kTokens>
DISTILL_AVX512_BF16 void multiply_tile(const Tile& tile) {
  __m512 sums[kTokens][kTileGroups];
  clear(sums);
  int64_t chunk = 0;
  do {  // at least once, or GCC 12 keeps the sums in memory
    __m512bh weights[kTileGroups];
    for (int g = 0; g < kTileGroups; ++g) weights[g] = (__m512bh)tile.panel.of[g][chunk];
    for (int t = 0; t < kTokens; ++t) {
      const __m512bh activations = load_chunk(tile.x + t * tile.x_stride + chunk * kChunkBytes);
      for (int g = 0; g < kTileGroups; ++g) sums[t][g] = _mm512_dpbf16_ps(sums[t][g], activations, weights[g]);
    }
  } while (++chunk < tile.chunks);
  const __m512 scale = _mm512_set1_ps(tile.scale);
  for (int t = 0; t < kTokens; ++t) {
    for (int g = 0; g < kTileGroups; ++g) {
      tile.totals[t].of[g] = _mm512_fmadd_ps(sums[t][g], scale, tile.totals[t].of[g]);
    }
  }
}

using MultiplyTile = void (*)(const Tile&);
using TilesByTokens = std::array<MultiplyTile, kMaxTileTokens>;

template <int kTileGroups, size_t... kTokens>
constexpr TilesByTokens tiles_of(std::index_sequence<kTokens...>) {
  return {multiply_tile<kTileGroups, kTokens + 1>...};
}

template <size_t... kTileGroups>
constexpr std::array<TilesByTokens, kGroups> all_tiles(std::index_sequence<kTileGroups...>) {
  return {tiles_of<kTileGroups + 1>(std::make_index_sequence<kMaxTileTokens>())...};
}

constexpr auto kTiles = all_tiles(std::make_index_sequence<kGroups>());  // [groups - 1][tokens - 1]

// The totals of tokens [first, first + tokens) of x.
template <WeightType kType>
DISTILL_AVX512_BF16 void multiply_panel(const Rows& rows, const ActivationRows& x, int64_t first, int64_t tokens,
                                        Totals* totals) {
  Panel panel;
  std::fill_n(totals, tokens, Totals{});
  const TilesByTokens& tiles = kTiles[static_cast<size_t>(rows.groups() - 1)];
  const int64_t parts = (tokens + kMaxTileTokens - 1) / kMaxTileTokens;  // of tokens, about equal
  for (int64_t begin = 0; begin < rows.in; begin += kScaleBlock) {
    const int64_t chunks = decode_block<kType>(rows, begin, panel);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t from = tokens * part / parts;
      const int64_t count = tokens * (part + 1) / parts - from;
      tiles[static_cast<size_t>(count - 1)]({.panel = panel,
                                             .chunks = chunks,
                                             .x = x.row(first + from) + begin * 2,
                                             .x_stride = x.row(1) - x.row(0),
                                             .scale = rows.scale(begin),
                                             .totals = totals + from});
    }
  }
}

using MultiplyPair = void (*)(const Rows&, int64_t, const std::byte* const*, Totals*);

template <WeightType kType, size_t... kTokens>
constexpr std::array<MultiplyPair, kMaxWaitingTokens> pairs_of(std::index_sequence<kTokens...>) {
  return {multiply_pair<kType, kTokens + 1>...};
}

template <WeightType kType>
void multiply_tokens(const Rows& rows, const ActivationRows& x, int64_t first, int64_t tokens, Totals* totals) {
  static constexpr auto kPairs = pairs_of<kType>(std::make_index_sequence<kMaxWaitingTokens>());  // [tokens - 1]
  if (tokens > kMaxWaitingTokens) return multiply_panel<kType>(rows, x, first, tokens, totals);
  const std::byte* pointers[kMaxWaitingTokens];
  for (int64_t t = 0; t < tokens; ++t) pointers[t] = x.row(first + t);
  for (int64_t g = 0; g < rows.groups(); g += 2) kPairs[static_cast<size_t>(tokens - 1)](rows, g, pointers, totals);
}

DISTILL_AVX512_BF16_INLINE __m512d add_lanes(__m512 a, __m512 b) {
  return (__m512d)(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
}

// The sums of a token with the first `count` rows, in order.
DISTILL_AVX512_BF16 void store_sums(const Totals& totals, int64_t count, float* sums) {
  const __m512d left = add_lanes(totals.of[0], totals.of[1]);
  const __m512d right = add_lanes(totals.of[2], totals.of[3]);
  const auto by_row = (__m512)_mm512_unpacklo_pd(left, right) + (__m512)_mm512_unpackhi_pd(left, right);
  const auto mask = static_cast<__mmask16>((1 << count) - 1);
  _mm512_mask_storeu_ps(sums, mask,
                        __builtin_shufflevector(by_row, by_row, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
}

}  // namespace

void multiply_rows_avx512(const WeightRows& weights, int64_t first_row, int64_t rows, const ActivationRows& x,
                          float* sums, int64_t stride, const std::byte* next) {
  const int64_t row_bytes = weights.row_bytes();
  Totals totals[kMaxTokens];
  for (int64_t t = 0; t < x.rows(); t += kMaxTokens) {
    const int64_t tokens = std::min(kMaxTokens, x.rows() - t);
    for (int64_t r = 0; r < rows;) {
      const int64_t row = first_row + r;
      const int64_t count = std::min({kPanelRows, rows - r, kScaleBlock - row % kScaleBlock});
      const std::byte* first = weights.values_of(row);
      Rows some{.values = {},
                .count = count,
                .in = weights.in,
                .scales = weights.scales_of(row),
                .next = r + count < rows ? first + count * row_bytes : next};
      for (int64_t i = 0; i < kPanelRows; ++i) {
        some.values[static_cast<size_t>(i)] = first + std::min(i, count - 1) * row_bytes;
      }
      if (weights.type == WeightType::kBf16) {
        multiply_tokens<WeightType::kBf16>(some, x, t, tokens, totals);
      } else {
        multiply_tokens<WeightType::kE4m3>(some, x, t, tokens, totals);
      }
      for (int64_t i = 0; i < tokens; ++i) store_sums(totals[i], count, sums + (t + i) * stride + r);
      r += count;
    }
  }
}

bool has_avx512_rows() {
  static const bool has = has_avx512_bf16() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni");
  return has;
}

}  // namespace distill::kernels

#else

namespace distill::kernels {

void multiply_rows_avx512(const WeightRows&, int64_t, int64_t, const ActivationRows&, float*, int64_t,
                          const std::byte*) {}
bool has_avx512_rows() {
  return false;
}

}  // namespace distill::kernels

#endif
