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
  __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16,fma")))

namespace distill::kernels {
namespace {

constexpr int64_t kGroup = ActivationRows::kGroup;
constexpr int64_t kRows = 2 * kTileRows;              // of weights at a time
constexpr int64_t kBufferRowBytes = kScaleBlock * 2;  // decoded bf16

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

// Fetches `lines` cache lines into the second-level cache, where a call will soon look for them.
DISTILL_AMX_ROWS inline void fetch(const std::byte* from, int64_t lines) {
  for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(from + line * kTileBytes, 0, 2);
}

// Adds the products of `steps` times 32 inputs. From `next`, if not null, as much is fetched as weights are read.
DISTILL_AMX_ROWS inline void add_steps(const Extent& extent, const std::byte* weights, int64_t weight_stride,
                                       const std::byte* const* groups, int64_t steps, const std::byte* next) {
  for (int64_t step = 0; step < steps; ++step) {
    if (next != nullptr) fetch(next + step * extent.rows * kTileBytes, extent.rows);
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

// [group][weight row][token].
using Sums = std::array<std::array<std::array<float, kGroup>, kRows>, 2>;

DISTILL_AMX_ROWS inline void store_sums(const Extent& extent, Sums& sums) {
  _tile_stored(0, sums[0][0].data(), kTileBytes);
  if (extent.lower()) _tile_stored(1, sums[0][kTileRows].data(), kTileBytes);
  if (!extent.second()) return;
  _tile_stored(2, sums[1][0].data(), kTileBytes);
  if (extent.lower()) _tile_stored(3, sums[1][kTileRows].data(), kTileBytes);
}

// Writes the sums of tokens [first_token, ..) of one group.
void write_out(const std::array<std::array<float, kGroup>, kRows>& sums, int64_t rows, int64_t tokens, float* to,
               int64_t stride) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < rows; ++r) to[t * stride + r] = sums[static_cast<size_t>(r)][static_cast<size_t>(t)];
  }
}

// The weight rows of one call, 32 at most.
struct RowRange {
  const WeightRows& weights;
  int64_t first, count;
  const std::byte* next;  // what will be read after them
};

// Inputs [begin, begin + count) of the rows as bf16, count <= 128, zeros up to a whole number of steps. Of FP8, the
// same part of what comes next is fetched.
template <WeightType kType>
DISTILL_AMX_ROWS inline void decode_block(const RowRange& rows, int64_t begin, int64_t count, std::byte* buffer) {
  constexpr int64_t kElement = kType == WeightType::kE4m3 ? 1 : 2;
  const Loader<kType> loader;
  for (int64_t r = 0; r < rows.count; ++r) {
    const std::byte* from = rows.weights.values_of(rows.first + r) + begin * kElement;
    std::byte* to = buffer + r * kBufferRowBytes;
    if constexpr (kType == WeightType::kE4m3) {
      fetch(rows.next + begin * rows.count + r * kScaleBlock, kScaleBlock / kTileBytes);
      __builtin_prefetch(from + kScaleBlock * 2);
      __builtin_prefetch(from + kScaleBlock * 2 + kTileBytes);
    }
    for (int64_t i = 0; i < count; i += kLoadStep) {
      const Weights64 values =
          count - i >= kLoadStep ? loader.load(from + i * kElement) : loader.load_part(from + i * kElement, count - i);
      _mm512_store_si512(to + i * 2, values.first);
      _mm512_store_si512(to + i * 2 + 64, values.second);
    }
  }
}

int64_t steps_of(int64_t count, WeightType type) {
  // The FP8 decoder spreads the inputs of a step of 64 over both of its vectors.
  return type == WeightType::kE4m3 ? (count + kLoadStep - 1) / kLoadStep * 2 : (count + kTileInputs - 1) / kTileInputs;
}

DISTILL_AMX_ROWS void multiply_bf16(const RowRange& rows, const ActivationRows& x, float* sums, int64_t stride) {
  const int64_t in = rows.weights.in;
  const int64_t whole = in / kTileInputs;
  const int64_t rest = in - whole * kTileInputs;
  alignas(64) std::array<std::byte, kRows * kBufferRowBytes> tail;
  if (rest > 0) decode_block<WeightType::kBf16>(rows, whole * kTileInputs, rest, tail.data());
  const std::byte* values = rows.weights.values_of(rows.first);
  for (int64_t t = 0; t < x.rows(); t += 2 * kGroup) {
    const Extent extent{.rows = rows.count, .groups = x.rows() - t > kGroup ? 2 : 1, .pair_bytes = x.pair_bytes()};
    const std::byte* groups[2] = {x.row(t), x.row(extent.second() ? t + kGroup : t)};
    alignas(64) Sums out;
    clear_sums();
    add_steps(extent, values, in * 2, groups, whole, t == 0 ? rows.next : nullptr);
    if (rest > 0) {
      const int64_t offset = whole * extent.group_step_bytes();
      const std::byte* last[2] = {groups[0] + offset, groups[1] + offset};
      add_steps(extent, tail.data(), kBufferRowBytes, last, 1, nullptr);
    }
    store_sums(extent, out);
    for (int64_t g = 0; g < extent.groups; ++g) {
      const int64_t token = t + g * kGroup;
      write_out(out[static_cast<size_t>(g)], rows.count, std::min(kGroup, x.rows() - token), sums + token * stride,
                stride);
    }
  }
}

// totals += sums * the scale of each row's block.
DISTILL_AMX_ROWS inline void add_scaled(const std::array<std::array<float, kGroup>, kRows>& sums, const float* scales,
                                        int64_t rows, float* totals) {
  for (int64_t r = 0; r < rows; ++r) {
    float* total = totals + r * kGroup;
    const __m512 sum = _mm512_load_ps(sums[static_cast<size_t>(r)].data());
    _mm512_store_ps(total, _mm512_fmadd_ps(sum, _mm512_set1_ps(scales[r]), _mm512_load_ps(total)));
  }
}

constexpr int64_t kMaxGroups = 8;  // whose totals lie beside the decoded block

// At most kMaxGroups groups of tokens, from `first_token` on.
DISTILL_AMX_ROWS void multiply_e4m3(const RowRange& rows, const ActivationRows& x, int64_t first_token, float* sums,
                                    int64_t stride) {
  const int64_t in = rows.weights.in;
  const int64_t tokens = std::min(x.rows() - first_token, kMaxGroups * kGroup);
  // Two buffers in turn: what a tile loads has long been stored.
  alignas(64) std::array<std::array<std::byte, kRows * kBufferRowBytes>, 2> buffers;
  alignas(64) std::array<float, kMaxGroups * kRows * kGroup> totals;
  std::fill_n(totals.begin(), (tokens + kGroup - 1) / kGroup * kRows * kGroup, 0.0f);
  alignas(64) Sums block{};  // of a narrow group only a part is written
  decode_block<WeightType::kE4m3>(rows, 0, std::min(kScaleBlock, in), buffers[0].data());
  for (int64_t begin = 0; begin < in; begin += kScaleBlock) {
    const int64_t count = std::min(kScaleBlock, in - begin);
    const int64_t next = begin + kScaleBlock;
    const auto& buffer = buffers[static_cast<size_t>(begin / kScaleBlock % 2)];
    if (next < in) {
      decode_block<WeightType::kE4m3>(rows, next, std::min(kScaleBlock, in - next),
                                      buffers[static_cast<size_t>(next / kScaleBlock % 2)].data());
    }
    std::array<float, kRows> scales{};
    for (int64_t r = 0; r < rows.count; ++r) {
      scales[static_cast<size_t>(r)] = rows.weights.scales_of(rows.first + r)[begin / kScaleBlock];
    }
    for (int64_t t = 0; t < tokens; t += 2 * kGroup) {
      const Extent extent{.rows = rows.count, .groups = tokens - t > kGroup ? 2 : 1, .pair_bytes = x.pair_bytes()};
      const int64_t offset = begin / kTileInputs * extent.group_step_bytes();
      const std::byte* groups[2] = {x.row(first_token + t) + offset,
                                    x.row(first_token + (extent.second() ? t + kGroup : t)) + offset};
      clear_sums();
      add_steps(extent, buffer.data(), kBufferRowBytes, groups, steps_of(count, WeightType::kE4m3), nullptr);
      store_sums(extent, block);
      for (int64_t g = 0; g < extent.groups; ++g) {
        add_scaled(block[static_cast<size_t>(g)], scales.data(), rows.count,
                   totals.data() + (t / kGroup + g) * kRows * kGroup);
      }
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const float* group = totals.data() + t / kGroup * kRows * kGroup + t % kGroup;
    for (int64_t r = 0; r < rows.count; ++r) sums[(first_token + t) * stride + r] = group[r * kGroup];
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
  for (int64_t r = 0; r < rows; r += kRows) {
    const RowRange range{.weights = weights,
                         .first = first_row + r,
                         .count = std::min(kRows, rows - r),
                         .next = rows - r > kRows ? weights.values_of(first_row + r + kRows) : next};
    configure(range.count, x.pair_bytes());
    if (weights.type == WeightType::kBf16) {
      multiply_bf16(range, x, sums + r, stride);
    } else {
      for (int64_t t = 0; t < x.rows(); t += kMaxGroups * kGroup) multiply_e4m3(range, x, t, sums + r, stride);
    }
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
