// Intel AMX: scores of up to 32 rows against 32 positions at a time, then their exponentials, then 32 of the values'
// dimensions at a time. Keys and values are laid out for the tiles on the way, by interleaving pairs of rows: within
// each group of 32, columns 4i to 4i + 3 of the first tile are 8i to 8i + 3 of the memory's order, those of the second
// 8i + 4 to 8i + 7. For 30 rows and 32 positions of 64 dimensions all of it takes about 0.7 microseconds.
#include "kernels/attention/query_rows.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#include <algorithm>
#include <limits>

#include "kernels/amx_tiles.h"

#define DISTILL_AMX_ROWS __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16")))
#define DISTILL_AMX_ROWS_INLINE \
  __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16"), always_inline)) inline

namespace distill::kernels {
namespace {

constexpr int64_t kStep = kTileInputs;           // positions, or dimensions of values, at a time
constexpr int64_t kPairRow = 2 * kStep;          // bf16 values: a pair of rows of kStep
constexpr int64_t kPairRowBytes = 2 * kPairRow;  // 128: two tiles side by side
constexpr int64_t kSumRow = 2 * kTileRows;       // fp32 sums of two tiles side by side

// The steps that any of the rows sees, and how far apart the rows' scores lie: an odd number of cache lines, so that
// rows share no set of the cache.
struct Span {
  int64_t begin = std::numeric_limits<int64_t>::max();  // a multiple of kStep
  int64_t end = 0;                                      // the last position that any row sees, plus one
  int64_t stride = 0;                                   // floats

  explicit Span(const QueryRows<Bf16>& rows) {
    for (int64_t r = 0; r < rows.rows; ++r) {
      begin = std::min(begin, rows.first[r] / kStep * kStep);
      end = std::max(end, rows.end[r]);
    }
    stride = stride_of(end - begin);
  }
  int64_t steps() const { return (end - begin + kStep - 1) / kStep; }
  static int64_t stride_of(int64_t positions) { return (positions + kStep - 1) / kStep * kStep + kTileRows; }
};

// Where the parts of the scratch are.
struct Parts {
  Bf16* q;            // [32, dim]
  Bf16* interleaved;  // two buffers of [dim / 2, 64], used in turn so that what a tile loads has long been stored
  float* scores;      // [32, span.stride]; later the exponentials as bf16, at the same rows
  int64_t buffer;     // values of one buffer

  Parts(float* scratch, const QueryRows<Bf16>& rows)
      : q(reinterpret_cast<Bf16*>(scratch)),
        interleaved(q + kMaxQueryRows * rows.dim),
        scores(reinterpret_cast<float*>(interleaved + 2 * buffer_size(rows.dim))),
        buffer(buffer_size(rows.dim)) {}
  static int64_t buffer_size(int64_t dim) { return std::max(dim, kStep) / 2 * kPairRow; }
};

int64_t scratch_size(const QueryShape& shape) {
  const int64_t halves = kMaxQueryRows * shape.dim + 2 * Parts::buffer_size(shape.dim);
  return halves / 2 + kMaxQueryRows * Span::stride_of(shape.positions + kStep);
}

// Sums of two row tiles and two columns of tiles in 0 to 3; left factors in 4 and 5, right ones in 6 and 7.
void configure(int64_t rows) {
  TileConfig config;
  for (const int tile : {0, 1, 4}) config.set(tile, std::min(rows, kTileRows));
  for (const int tile : {2, 3, 5}) config.set(tile, std::max<int64_t>(rows - kTileRows, 1));
  for (const int tile : {6, 7}) config.set(tile, kTileInputs / 2);
  config.load();
}

DISTILL_AMX_ROWS_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Adds left [rows, 32] times right [16 pairs, 64].
template <bool kTwoTiles>
DISTILL_AMX_ROWS_INLINE void add_products(const Bf16* left, int64_t left_bytes, const Bf16* right) {
  _tile_loadd(6, right, kPairRowBytes);
  _tile_loadd(4, left, left_bytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, right + kStep, kPairRowBytes);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (kTwoTiles) {
    _tile_loadd(5, reinterpret_cast<const char*>(left) + kTileRows * left_bytes, left_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

template <bool kTwoTiles>
DISTILL_AMX_ROWS_INLINE void store_sums(float* sums, int64_t stride) {
  _tile_stored(0, sums, stride * 4);
  _tile_stored(1, sums + kTileRows, stride * 4);
  if constexpr (kTwoTiles) {
    _tile_stored(2, sums + kTileRows * stride, stride * 4);
    _tile_stored(3, sums + kTileRows * stride + kTileRows, stride * 4);
  }
}

DISTILL_AMX_ROWS_INLINE void interleave(__m512i even, __m512i odd, Bf16* out) {
  _mm512_store_si512(out, _mm512_unpacklo_epi16(even, odd));
  _mm512_store_si512(out + kStep, _mm512_unpackhi_epi16(even, odd));
}

// Dimension 0 of 32 positions of keys; `column` of a position of values.
inline const Bf16* keys_at(const QueryRows<Bf16>& rows, int64_t position) {
  return rows.keys + rows.blocks[position / rows.block_size] * rows.key_stride + position % rows.block_size;
}
inline const Bf16* values_at(const QueryRows<Bf16>& rows, int64_t position, int64_t column) {
  return rows.values + rows.blocks[position / rows.block_size] * rows.value_stride +
         position % rows.block_size * rows.value_dim + column;
}

// 32 positions of keys as [dim / 2, 64].
DISTILL_AMX_ROWS_INLINE void interleave_keys(const QueryRows<Bf16>& rows, int64_t position, Bf16* out) {
  const Bf16* key = keys_at(rows, position);
  for (int64_t d = 0; d < rows.dim; d += 2, key += 2 * rows.block_size, out += kPairRow) {
    interleave(_mm512_loadu_si512(key), _mm512_loadu_si512(key + rows.block_size), out);
  }
}

// Dimensions [column, column + 32) of 32 positions of values as [16, 64], positions in the order of the scores; those
// from `end` on, which may hold anything, count as zero.
DISTILL_AMX_ROWS_INLINE void interleave_values(const QueryRows<Bf16>& rows, int64_t position, int64_t end,
                                               int64_t column, Bf16* out) {
  const Bf16* value = values_at(rows, position, column);
  for (int64_t pair = 0; pair < kStep / 2; ++pair, out += kPairRow) {
    const int64_t at = pair % 8 / 2 * 8 + pair / 8 * 4 + pair % 2 * 2;
    const __m512i even = position + at < end ? _mm512_loadu_si512(value + at * rows.value_dim) : _mm512_setzero_si512();
    const __m512i odd =
        position + at + 1 < end ? _mm512_loadu_si512(value + (at + 1) * rows.value_dim) : _mm512_setzero_si512();
    interleave(even, odd, out);
  }
}

template <bool kTwoTiles>
DISTILL_AMX_ROWS_INLINE void score(const QueryRows<Bf16>& rows, const Span& span, const Parts& parts) {
  interleave_keys(rows, span.begin, parts.interleaved);
  for (int64_t step = 0; step < span.steps(); ++step) {
    const Bf16* keys = parts.interleaved + step % 2 * parts.buffer;
    if (step + 1 < span.steps()) {
      interleave_keys(rows, span.begin + (step + 1) * kStep, parts.interleaved + (step + 1) % 2 * parts.buffer);
    }
    clear_sums();
    for (int64_t d = 0; d < rows.dim; d += kTileInputs) {
      add_products<kTwoTiles>(parts.q + d, rows.dim * 2, keys + d / 2 * kPairRow);
    }
    store_sums<kTwoTiles>(parts.scores + step * kStep, span.stride);
  }
}

// 2^x with a relative error below 3e-6, 0 far below 1.
DISTILL_AMX_ROWS_INLINE __m512 power_of_two(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 power = _mm512_set1_ps(1.3333558e-3f);  // ln(2)^k / k!, from k = 5 down
  for (const float coefficient : {9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) {
    power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(coefficient));
  }
  return _mm512_scalef_ps(power, whole);
}

// Turns a row's scores into exponentials as bf16, zero where the row doesn't see. Returns their sum.
DISTILL_AMX_ROWS_INLINE float exponentiate(float* scores, int64_t first, int64_t end, int64_t steps, float scale) {
  const __m512i in_first = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
  const __m512i in_second = _mm512_add_epi32(in_first, _mm512_set1_epi32(4));
  const auto seen = [&](int64_t step, __m512i offsets) DISTILL_AMX_ROWS {
    const auto from = static_cast<int>(first - step * kStep);
    const auto to = static_cast<int>(end - step * kStep);
    return _mm512_cmpge_epi32_mask(offsets, _mm512_set1_epi32(from)) &
           _mm512_cmplt_epi32_mask(offsets, _mm512_set1_epi32(to));
  };
  const __m512 factor = _mm512_set1_ps(scale * 1.44269504088896341f);  // times log2(e)
  const auto* loaded = scores;
  __m512 maxima = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t step = first / kStep; step * kStep < end; ++step) {
    for (int64_t half = 0; half < 2; ++half) {
      const __m512 values = _mm512_mul_ps(_mm512_load_ps(loaded + step * kStep + half * kTileRows), factor);
      maxima = _mm512_mask_max_ps(maxima, seen(step, half == 0 ? in_first : in_second), maxima, values);
    }
  }
  const __m512 maximum = _mm512_set1_ps(_mm512_reduce_max_ps(maxima));
  __m512 total = _mm512_setzero_ps();
  auto* out = reinterpret_cast<Bf16*>(scores);  // always behind what is still to be read
  for (int64_t step = 0; step < steps; ++step) {
    __m512i exponentials = _mm512_setzero_si512();
    if ((step + 1) * kStep > first && step * kStep < end) {
      __m512 halves[2];
      for (int64_t half = 0; half < 2; ++half) {
        const __m512 values = _mm512_load_ps(loaded + step * kStep + half * kTileRows);
        halves[half] = _mm512_maskz_mov_ps(seen(step, half == 0 ? in_first : in_second),
                                           power_of_two(_mm512_fmsub_ps(values, factor, maximum)));
        total = _mm512_add_ps(total, halves[half]);
      }
      exponentials = (__m512i)_mm512_cvtne2ps_pbh(halves[1], halves[0]);
    }
    _mm512_store_si512(out + step * kStep, exponentials);
  }
  return _mm512_reduce_add_ps(total);
}

// Writes sums [rows, 32] times `inverse` to dimensions [column, column + 32) of the rows' results, in memory's order.
DISTILL_AMX_ROWS_INLINE void write_out(const QueryRows<Bf16>& rows, const float* sums, const float* inverse,
                                       int64_t column) {
  const __m512i lower = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
  for (int64_t r = 0; r < rows.rows; ++r, sums += kSumRow) {
    const __m512 factor = _mm512_set1_ps(inverse[r]);
    const __m512 first = _mm512_mul_ps(_mm512_load_ps(sums), factor);
    const __m512 second = _mm512_mul_ps(_mm512_load_ps(sums + kTileRows), factor);
    _mm512_storeu_si512(rows.out[r] + column,
                        (__m512i)_mm512_cvtne2ps_pbh(_mm512_permutex2var_ps(first, upper, second),
                                                     _mm512_permutex2var_ps(first, lower, second)));
  }
}

template <bool kTwoTiles>
DISTILL_AMX_ROWS_INLINE void mix(const QueryRows<Bf16>& rows, const Span& span, const Parts& parts,
                                 const float* inverse) {
  const auto* weights = reinterpret_cast<const Bf16*>(parts.scores);
  alignas(64) float sums[kMaxQueryRows * kSumRow];
  for (int64_t column = 0; column < rows.value_dim; column += kStep) {
    clear_sums();
    interleave_values(rows, span.begin, span.end, column, parts.interleaved);
    for (int64_t step = 0; step < span.steps(); ++step) {
      const Bf16* values = parts.interleaved + step % 2 * parts.buffer;
      if (step + 1 < span.steps()) {
        interleave_values(rows, span.begin + (step + 1) * kStep, span.end, column,
                          parts.interleaved + (step + 1) % 2 * parts.buffer);
      }
      add_products<kTwoTiles>(weights + step * kStep, span.stride * 4, values);
    }
    store_sums<kTwoTiles>(sums, kSumRow);
    write_out(rows, sums, inverse, column);
  }
}

template <bool kTwoTiles>
DISTILL_AMX_ROWS void attend_as(const QueryRows<Bf16>& rows, float* scratch) {
  const Span span(rows);
  const Parts parts(scratch, rows);
  for (int64_t r = 0; r < rows.rows; ++r) std::copy_n(rows.q[r], rows.dim, parts.q + r * rows.dim);
  configure(rows.rows);
  score<kTwoTiles>(rows, span, parts);
  float inverse[kMaxQueryRows];
  for (int64_t r = 0; r < rows.rows; ++r) {
    inverse[r] = 1.0f / exponentiate(parts.scores + r * span.stride, rows.first[r] - span.begin,
                                     rows.end[r] - span.begin, span.steps(), rows.scale);
  }
  mix<kTwoTiles>(rows, span, parts, inverse);
  _tile_release();
}

void attend(const QueryRows<Bf16>& rows, float* scratch) {
  rows.rows > kTileRows ? attend_as<true>(rows, scratch) : attend_as<false>(rows, scratch);
}

}  // namespace

const QueryKernel<Bf16>* amx_query_kernel(const QueryShape& shape) {
  static constexpr QueryKernel<Bf16> kKernel{.max_rows = kMaxQueryRows, .scratch = scratch_size, .attend = attend};
  const bool fits = shape.dim % kTileInputs == 0 && shape.value_dim % kStep == 0 && shape.block_size % kStep == 0;
  return fits && has_amx_bf16() ? &kKernel : nullptr;
}

}  // namespace distill::kernels

#else

namespace distill::kernels {

const QueryKernel<Bf16>* amx_query_kernel(const QueryShape&) {
  return nullptr;
}

}  // namespace distill::kernels

#endif
