// Intel AMX: one instruction multiplies 16 weight rows x 32 inputs with 32 inputs x 16 tokens (Intel SDM vol. 1,
// chapter 18), so that up to 16 tokens cost what one does. Weight rows are the left operand, straight from memory where
// they are bf16; FP8 is decoded block by block into a buffer that never leaves the first-level cache.
#include "kernels/stored_linear/row_kernels.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/amx_tiles.h"
#include "kernels/stored_linear/weight_loader.h"

#define DISTILL_AMX_ROWS \
  __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16,gfni,fma")))

namespace distill::kernels {
namespace {

constexpr int64_t kGroup = ActivationRows::kGroup;
constexpr int64_t kRows = 2 * kTileRows;              // of weights at a time
constexpr int64_t kBufferRowBytes = kScaleBlock * 2;  // decoded bf16
constexpr int64_t kAhead = 3 * kScaleBlock;           // the distance that measured best

// Up to 32 weight rows against up to two groups of tokens. Sums in tiles 0 (upper rows, first group), 1 (lower, first),
// 2 (upper, second), 3 (lower, second); weights in 4 and 5, activations in 6 and 7.
struct Extent {
  int64_t rows;
  int64_t groups;
  int64_t pair_bytes;  // of activations
  bool lower() const { return rows > kTileRows; }
  bool second() const { return groups > 1; }
  int64_t group_step_bytes() const { return kTileInputs / 2 * pair_bytes; }
};

DISTILL_AMX_ROWS void configure(int64_t rows, int64_t pair_bytes) {
  TileConfig config;
  const int64_t upper = std::min(rows, kTileRows);
  const int64_t lower = rows > kTileRows ? rows - kTileRows : 1;
  for (const int tile : {0, 2}) config.set(tile, upper, pair_bytes);
  for (const int tile : {1, 3}) config.set(tile, lower, pair_bytes);
  config.set(4, upper);
  config.set(5, lower);
  for (const int tile : {6, 7}) config.set(tile, kTileInputs / 2, pair_bytes);
  config.load();
}

DISTILL_AMX_ROWS inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Adds the products of `steps` times 32 inputs.
DISTILL_AMX_ROWS inline void add_steps(const Extent& extent, const std::byte* weights, int64_t weight_stride,
                                       const std::byte* const* groups, int64_t steps) {
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, weights + step * kTileBytes, weight_stride);
    _tile_loadd(6, groups[0] + step * extent.group_step_bytes(), extent.pair_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (extent.lower()) {
      _tile_loadd(5, weights + kTileRows * weight_stride + step * kTileBytes, weight_stride);
      _tile_dpbf16ps(1, 5, 6);
    }
    if (extent.second()) {
      _tile_loadd(7, groups[1] + step * extent.group_step_bytes(), extent.pair_bytes);
      _tile_dpbf16ps(2, 4, 7);
      if (extent.lower()) _tile_dpbf16ps(3, 5, 7);
    }
  }
}

// Of one group of tokens: [weight row][token of the group], packed.
using GroupSums = std::array<float, kRows * kGroup>;

DISTILL_AMX_ROWS inline void store_sums(const Extent& extent, GroupSums* groups) {
  const int64_t lower = kTileRows * extent.pair_bytes / 4;
  _tile_stored(0, groups[0].data(), extent.pair_bytes);
  if (extent.lower()) _tile_stored(1, groups[0].data() + lower, extent.pair_bytes);
  if (!extent.second()) return;
  _tile_stored(2, groups[1].data(), extent.pair_bytes);
  if (extent.lower()) _tile_stored(3, groups[1].data() + lower, extent.pair_bytes);
}

// Where sums go: weight row r of token t at [t * token_stride + r * row_stride].
struct Destination {
  float* sums;
  int64_t token_stride, row_stride;

  // Writes those of a group's `tokens`.
  void write(int64_t first_token, int64_t tokens, const GroupSums& group, const Extent& extent) const {
    const int64_t width = extent.pair_bytes / 4;
    for (int64_t t = 0; t < tokens; ++t) {
      float* to = sums + (first_token + t) * token_stride;
      for (int64_t r = 0; r < extent.rows; ++r) to[r * row_stride] = group[static_cast<size_t>(r * width + t)];
    }
  }
};

// The weight rows of one call, 32 at most, all in one block of scales.
struct RowRange {
  const std::byte* values;  // of the first row
  int64_t stride;           // bytes from one row to the next
  int64_t in, count;
  const float* scales;    // FP8: of that block
  const std::byte* next;  // the first row of the next call
};

// Inputs of one row as bf16, count <= 128, zeros up to a whole number of steps.
template <WeightType kType>
DISTILL_AMX_ROWS inline void decode_part(const Loader<kType>& loader, const std::byte* from, int64_t count,
                                         std::byte* to) {
  constexpr int64_t kElement = kType == WeightType::kE4m3 ? 1 : 2;
  for (int64_t i = 0; i < count; i += kLoadStep) {
    const Weights64 values =
        count - i >= kLoadStep ? loader.load(from + i * kElement) : loader.load_part(from + i * kElement, count - i);
    _mm512_store_si512(to + i * 2, values.first);
    _mm512_store_si512(to + i * 2 + 64, values.second);
  }
}

// Inputs [begin, begin + 128) of all rows, or as many as there are, as bf16. What will be read kAhead bytes of each row
// later is fetched.
DISTILL_AMX_ROWS inline void decode_block(const RowRange& rows, int64_t begin, std::byte* buffer) {
  const Loader<WeightType::kE4m3> loader;
  const std::byte* from = rows.values + begin;
  const std::byte* ahead = begin + kAhead < rows.in ? from + kAhead : rows.next + (begin + kAhead - rows.in);
  const int64_t count = rows.in - begin;
  for (int64_t r = 0; r < rows.count; ++r, from += rows.stride, ahead += rows.stride, buffer += kBufferRowBytes) {
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead + kTileBytes);
    if (count >= kScaleBlock) {
      decode_part(loader, from, kScaleBlock, buffer);
    } else {
      decode_part(loader, from, count, buffer);
    }
  }
}

// The FP8 decoder spreads the inputs of a step of 64 over both of its vectors.
int64_t fp8_steps(int64_t count) {
  return (count + kLoadStep - 1) / kLoadStep * 2;
}

DISTILL_AMX_ROWS void multiply_bf16(const RowRange& rows, const ActivationRows& x, const Destination& to) {
  const int64_t whole = rows.in / kTileInputs;
  const int64_t rest = rows.in - whole * kTileInputs;
  alignas(64) std::array<std::byte, kRows * kBufferRowBytes> tail;
  for (int64_t r = 0; rest > 0 && r < rows.count; ++r) {
    decode_part(Loader<WeightType::kBf16>(), rows.values + r * rows.stride + whole * kTileInputs * 2, rest,
                tail.data() + r * kBufferRowBytes);
  }
  for (int64_t t = 0; t < x.rows(); t += 2 * kGroup) {
    const Extent extent{.rows = rows.count, .groups = x.rows() - t > kGroup ? 2 : 1, .pair_bytes = x.pair_bytes()};
    const std::byte* groups[2] = {x.row(t), x.row(extent.second() ? t + kGroup : t)};
    alignas(64) std::array<GroupSums, 2> out;
    clear_sums();
    add_steps(extent, rows.values, rows.stride, groups, whole);
    if (rest > 0) {
      const int64_t offset = whole * extent.group_step_bytes();
      const std::byte* last[2] = {groups[0] + offset, groups[1] + offset};
      add_steps(extent, tail.data(), kBufferRowBytes, last, 1);
    }
    store_sums(extent, out.data());
    for (int64_t g = 0; g < extent.groups; ++g) {
      const int64_t token = t + g * kGroup;
      to.write(token, std::min(kGroup, x.rows() - token), out[static_cast<size_t>(g)], extent);
    }
  }
}

// totals += sums * scale.
DISTILL_AMX_ROWS inline void add_scaled(const GroupSums& sums, float scale, int64_t count, GroupSums& totals) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 total = _mm512_load_ps(totals.data() + i);
    _mm512_store_ps(totals.data() + i, _mm512_fmadd_ps(_mm512_load_ps(sums.data() + i), factor, total));
  }
}

constexpr int64_t kMaxGroups = 8;  // whose totals lie beside the decoded block

// At most kMaxGroups groups of tokens, from `first_token` on.
DISTILL_AMX_ROWS void multiply_e4m3(const RowRange& rows, const ActivationRows& x, int64_t first_token,
                                    const Destination& to) {
  const int64_t tokens = std::min(x.rows() - first_token, kMaxGroups * kGroup);
  const int64_t groups = (tokens + kGroup - 1) / kGroup;
  const Extent all{.rows = rows.count, .groups = groups, .pair_bytes = x.pair_bytes()};
  const int64_t group_size = rows.count * x.pair_bytes() / 4;
  // Two buffers in turn, of weights and of sums: what is loaded has long been stored.
  alignas(64) std::array<std::array<std::byte, kRows * kBufferRowBytes>, 2> buffers;
  alignas(64) std::array<std::array<GroupSums, kMaxGroups>, 2> blocks;
  alignas(64) std::array<GroupSums, kMaxGroups> totals;
  for (int64_t g = 0; g < groups; ++g) {
    const auto whole = (group_size + 15) / 16 * 16;
    for (GroupSums* part :
         {&totals[static_cast<size_t>(g)], &blocks[0][static_cast<size_t>(g)], &blocks[1][static_cast<size_t>(g)]}) {
      std::fill_n(part->begin(), whole, 0.0f);
    }
  }
  const auto add_block = [&](int64_t begin) __attribute__((target("avx512f"))) {
    const auto& block = blocks[static_cast<size_t>(begin / kScaleBlock % 2)];
    for (int64_t g = 0; g < groups; ++g) {
      add_scaled(block[static_cast<size_t>(g)], rows.scales[begin / kScaleBlock], group_size,
                 totals[static_cast<size_t>(g)]);
    }
  };
  decode_block(rows, 0, buffers[0].data());
  for (int64_t begin = 0; begin < rows.in; begin += kScaleBlock) {
    const int64_t next = begin + kScaleBlock;
    const auto parity = static_cast<size_t>(begin / kScaleBlock % 2);
    if (next < rows.in) decode_block(rows, next, buffers[1 - parity].data());
    const int64_t steps = fp8_steps(std::min(kScaleBlock, rows.in - begin));
    const int64_t offset = begin / kTileInputs * all.group_step_bytes();
    for (int64_t g = 0; g < groups; g += 2) {
      const Extent extent{.rows = rows.count, .groups = std::min<int64_t>(2, groups - g), .pair_bytes = x.pair_bytes()};
      const int64_t token = first_token + g * kGroup;
      const std::byte* pair[2] = {x.row(token) + offset, x.row(extent.second() ? token + kGroup : token) + offset};
      clear_sums();
      add_steps(extent, buffers[parity].data(), kBufferRowBytes, pair, steps);
      store_sums(extent, &blocks[parity][static_cast<size_t>(g)]);
    }
    if (begin > 0) add_block(begin - kScaleBlock);
  }
  add_block((rows.in - 1) / kScaleBlock * kScaleBlock);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t token = first_token + g * kGroup;
    to.write(token, std::min(kGroup, first_token + tokens - token), totals[static_cast<size_t>(g)], all);
  }
}

}  // namespace

bool has_amx_rows() {
  static const bool has = has_avx512_rows() && has_amx_bf16();
  return has;
}

DISTILL_AMX_ROWS void multiply_rows_amx(const WeightRows& weights, int64_t first_row, int64_t rows,
                                        const ActivationRows& x, float* sums, int64_t stride, const std::byte* next) {
  if (x.rows() == 0) return;
  for (int64_t r = 0; r < rows;) {
    const int64_t row = first_row + r;
    const int64_t block = std::min(rows - r, kScaleBlock - row % kScaleBlock);
    const int64_t count = std::min(kRows, block);
    // Of many rows each tile row takes several in turn, one call after the other: so it reads a long stretch of memory
    // in order, which the processor foresees better than many short ones.
    const int64_t calls = block / count;
    configure(count, x.pair_bytes());
    for (int64_t i = 0; i < calls; ++i) {
      const int64_t after = i + 1 < calls ? row + i + 1 : row + calls * count;
      const RowRange range{.values = weights.values_of(row + i),
                           .stride = calls * weights.row_bytes(),
                           .in = weights.in,
                           .count = count,
                           .scales = weights.scales_of(row),
                           .next = after < first_row + rows ? weights.values_of(after) : next};
      const Destination to{.sums = sums + r + i, .token_stride = stride, .row_stride = calls};
      if (weights.type == WeightType::kBf16) {
        multiply_bf16(range, x, to);
      } else {
        for (int64_t t = 0; t < x.rows(); t += kMaxGroups * kGroup) multiply_e4m3(range, x, t, to);
      }
    }
    r += calls * count;
  }
  _tile_release();
}

}  // namespace distill::kernels

#else

namespace distill::kernels {

bool has_amx_rows() {
  return false;
}
void multiply_rows_amx(const WeightRows&, int64_t, int64_t, const ActivationRows&, float*, int64_t, const std::byte*) {}

}  // namespace distill::kernels

#endif
