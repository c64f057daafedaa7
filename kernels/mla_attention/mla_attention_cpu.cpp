#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/mla_attention/fp8_entries.h"
#include "kernels/mla_attention/mla_attention.h"
#include "kernels/storage_type.h"
#include "kernels/stored_linear/row_products.h"
#include "kernels/work_sharing.h"

namespace distill::kernels {
namespace {

constexpr int64_t kHeadTile = 8;      // heads that share one pass over the entries
constexpr int64_t kFp8HeadTile = 16;  // over entries in FP8, which each pass decodes
constexpr int64_t kHeadGroup = 4;     // of them whose sums stay in registers together
constexpr int64_t kVectors = 4;       // per head
constexpr int64_t kLanes = 16;
constexpr int64_t kColumns = kVectors * kLanes;

using Vector = float __attribute__((vector_size(kLanes * 4)));
using UnalignedVector = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
using UnalignedHalf = uint16_t __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
using Words = uint32_t __attribute__((vector_size(kLanes * 4)));

// sums[h * rank + d] += sum over j of weights[h * weight_stride + j] * entries[j * stride + d].
struct WeightedSum {
  const void* entries;
  int64_t stride, count;
  const float* weights;
  int64_t weight_stride, heads;
  float* sums;
  int64_t rank;
};

template <typename T, int64_t kHeads>
[[gnu::always_inline]] inline void add_columns(const WeightedSum& work, int64_t head, int64_t column) {
  Vector sums[kHeads][kVectors];
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t v = 0; v < kVectors; ++v) {
      sums[h][v] = *reinterpret_cast<const UnalignedVector*>(work.sums + (head + h) * work.rank + column + v * kLanes);
    }
  }
  for (int64_t j = 0; j < work.count; ++j) {
    const T* entry = static_cast<const T*>(work.entries) + j * work.stride + column;
    Vector values[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) {
      if constexpr (sizeof(T) == sizeof(float)) {
        values[v] = *reinterpret_cast<const UnalignedVector*>(entry + v * kLanes);
      } else {
        const auto bits = *reinterpret_cast<const UnalignedHalf*>(entry + v * kLanes);
        values[v] = reinterpret_cast<Vector>(__builtin_convertvector(bits, Words) << 16);
      }
    }
    for (int64_t h = 0; h < kHeads; ++h) {
      const float weight = work.weights[(head + h) * work.weight_stride + j];
      for (int64_t v = 0; v < kVectors; ++v) sums[h][v] += weight * values[v];
    }
  }
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t v = 0; v < kVectors; ++v) {
      *reinterpret_cast<UnalignedVector*>(work.sums + (head + h) * work.rank + column + v * kLanes) = sums[h][v];
    }
  }
}

template <typename T>
[[gnu::always_inline]] inline void add_weighted(const WeightedSum& work) {
  const int64_t whole = work.rank / kColumns * kColumns;
  int64_t head = 0;
  for (; head + kHeadGroup <= work.heads; head += kHeadGroup) {
    for (int64_t column = 0; column < whole; column += kColumns) add_columns<T, kHeadGroup>(work, head, column);
  }
  for (; head < work.heads; ++head) {
    for (int64_t column = 0; column < whole; column += kColumns) add_columns<T, 1>(work, head, column);
  }
  for (int64_t j = 0; j < work.count; ++j) {
    const T* entry = static_cast<const T*>(work.entries) + j * work.stride;
    for (int64_t h = 0; h < work.heads; ++h) {
      const float weight = work.weights[h * work.weight_stride + j];
      for (int64_t d = whole; d < work.rank; ++d) work.sums[h * work.rank + d] += weight * to_float(entry[d]);
    }
  }
}

DISTILL_MULTIVERSION void add_weighted_fp32(const WeightedSum& work) {
  add_weighted<float>(work);
}
DISTILL_MULTIVERSION void add_weighted_bf16(const WeightedSum& work) {
  add_weighted<Bf16>(work);
}

// Turns scores into weights that sum to one.
DISTILL_MULTIVERSION void normalise_scores(float* scores, int64_t count, float scale) {
  float maximum = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : maximum)
  for (int64_t j = 0; j < count; ++j) maximum = std::max(maximum, scores[j]);
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < count; ++j) {
    scores[j] = vector_exp((scores[j] - maximum) * scale);
    total += scores[j];
  }
  const float inverse = 1.0f / total;
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) scores[j] *= inverse;
}

// A query token: where its sequence's blocks are listed and how much of its context it sees.
struct Query {
  const int32_t* blocks;
  int64_t visible;
};

std::vector<Query> queries_of(const at::Tensor& sequence_offsets, const at::Tensor& block_table,
                              const at::Tensor& context_lengths, const at::Tensor& entries) {
  std::vector<Query> queries;
  const auto* offset = sequence_offsets.const_data_ptr<int32_t>();
  const auto* length = context_lengths.const_data_ptr<int32_t>();
  for (int64_t s = 0; s < context_lengths.size(0); ++s) {
    const int32_t* blocks = block_table.const_data_ptr<int32_t>() + s * block_table.size(1);
    const int64_t used = (length[s] + entries.size(1) - 1) / entries.size(1);
    TORCH_CHECK_INDEX(used <= block_table.size(1), "mla_attention: a context of ", length[s], " tokens does not fit ",
                      block_table.size(1), " blocks");
    for (int64_t b = 0; b < used; ++b) {
      TORCH_CHECK_INDEX(blocks[b] >= 0 && blocks[b] < entries.size(0), "mla_attention: block ", blocks[b], " of ",
                        entries.size(0));
    }
    for (int64_t t = offset[s]; t < offset[s + 1]; ++t)
      queries.push_back({blocks, length[s] - (offset[s + 1] - 1 - t)});
  }
  return queries;
}

struct Shape {
  int64_t heads, dim, rank, block_size;
  bool fp8;  // entries

  Fp8Entry entry() const { return {.rank = rank, .rope = dim - rank}; }
};

template <typename T>
void attend(const T* q, const void* entries, const Query& query, int64_t heads, const Shape& shape, float scale,
            T* out) {
  const int64_t context = query.visible;
  std::vector<float> scores(static_cast<size_t>(heads * context));
  std::vector<float> sums(static_cast<size_t>(heads * shape.rank));
  constexpr auto kType = sizeof(T) == sizeof(float) ? WeightType::kFp32 : WeightType::kBf16;
  const RowIsa isa = best_row_isa(sizeof(T) == sizeof(float) ? at::kFloat : at::kBFloat16, kType);
  ActivationRows rows(heads, shape.dim, isa, kType);
  for (int64_t h = 0; h < heads; ++h) rows.set(h, q + h * shape.dim);

  std::vector<T> decoded(shape.fp8 ? static_cast<size_t>(std::min(shape.block_size, context) * shape.dim) : 0);
  const auto for_each_block = [&](const auto& body) {
    for (int64_t begin = 0; begin < context; begin += shape.block_size) {
      const int64_t first = query.blocks[begin / shape.block_size] * shape.block_size;
      const int64_t count = std::min(shape.block_size, context - begin);
      if (shape.fp8) {
        const auto* block = static_cast<const uint8_t*>(entries) + first * shape.entry().bytes();
        decode_fp8_entries(shape.entry(), block, count, decoded.data());
        body(decoded.data(), begin, count);
      } else {
        body(static_cast<const T*>(entries) + first * shape.dim, begin, count);
      }
    }
  };
  for_each_block([&](const T* block, int64_t begin, int64_t count) {
    multiply_rows({.values = block, .scales = nullptr, .in = shape.dim, .type = kType}, 0, count, rows,
                  scores.data() + begin, context);
  });
  for (int64_t h = 0; h < heads; ++h) normalise_scores(scores.data() + h * context, context, scale);
  for_each_block([&](const T* block, int64_t begin, int64_t count) {
    const WeightedSum work{.entries = block,
                           .stride = shape.dim,
                           .count = count,
                           .weights = scores.data() + begin,
                           .weight_stride = context,
                           .heads = heads,
                           .sums = sums.data(),
                           .rank = shape.rank};
    if constexpr (sizeof(T) == sizeof(float)) {
      add_weighted_fp32(work);
    } else {
      add_weighted_bf16(work);
    }
  });
  for (size_t i = 0; i < sums.size(); ++i) out[i] = from_float<T>(sums[i]);
}

at::Tensor mla_attention_cpu(const at::Tensor& q, const at::Tensor& entries, const at::Tensor& sequence_offsets,
                             const at::Tensor& block_table_in, const at::Tensor& context_lengths, int64_t rank,
                             double scale) {
  const at::Tensor block_table = block_table_in.contiguous();
  const std::vector<Query> queries =
      queries_of(sequence_offsets.contiguous(), block_table, context_lengths.contiguous(), entries);
  TORCH_CHECK(static_cast<int64_t>(queries.size()) == q.size(0), "mla_attention: sequence_offsets cover ",
              queries.size(), " of ", q.size(0), " tokens");
  const Shape shape{.heads = q.size(1),
                    .dim = q.size(2),
                    .rank = rank,
                    .block_size = entries.size(1),
                    .fp8 = entries.scalar_type() == at::kByte};
  const at::Tensor out = at::empty({q.size(0), shape.heads, rank}, q.options());
  int64_t pairs = 0;
  for (const Query& query : queries) pairs += query.visible;
  const int64_t tile = shape.fp8 ? kFp8HeadTile : kHeadTile;
  const int64_t tiles = (shape.heads + tile - 1) / tile;
  with_storage_type(q, "mla_attention", [&]<typename T>(T) {
    const auto* from = static_cast<const T*>(q.const_data_ptr());
    auto* to = static_cast<T*>(out.mutable_data_ptr());
    share_work(q.size(0) * tiles, pairs * shape.heads * (shape.dim + rank), [&](int64_t item) {
      const int64_t token = item / tiles;
      const int64_t head = item % tiles * tile;
      const int64_t at = token * shape.heads + head;
      attend(from + at * shape.dim, entries.const_data_ptr(), queries[static_cast<size_t>(token)],
             std::min(tile, shape.heads - head), shape, static_cast<float>(scale), to + at * rank);
    });
  });
  return out;
}

void check_range(const at::Tensor& slots, const at::Tensor& entries, const char* operation) {
  const auto* slot = slots.const_data_ptr<int64_t>();
  const int64_t last = entries.size(0) * entries.size(1);
  for (int64_t t = 0; t < slots.size(0); ++t) {
    TORCH_CHECK_INDEX(slot[t] >= 0 && slot[t] < last, operation, ": slot ", slot[t], " of ", last);
  }
}

void write_latents_cpu(const at::Tensor& entries, const at::Tensor& latent, const at::Tensor& key,
                       const at::Tensor& slots) {
  const int64_t rank = latent.size(1);
  const int64_t rope = key.size(1);
  const auto* slot = slots.const_data_ptr<int64_t>();
  check_range(slots, entries, "write_latents");
  const bool fp8 = entries.scalar_type() == at::kByte;
  const Fp8Entry entry{.rank = rank, .rope = rope};
  with_storage_type(latent, "write_latents", [&]<typename T>(T) {
    for (int64_t t = 0; t < latent.size(0); ++t) {
      const T* from = static_cast<const T*>(latent.const_data_ptr()) + t * latent.stride(0);
      const T* rotary = static_cast<const T*>(key.const_data_ptr()) + t * key.stride(0);
      if (fp8) {
        encode_fp8_entry(entry, from, rotary, entries.mutable_data_ptr<uint8_t>() + slot[t] * entry.bytes());
      } else {
        T* to = static_cast<T*>(entries.mutable_data_ptr()) + slot[t] * (rank + rope);
        std::copy(rotary, rotary + rope, std::copy(from, from + rank, to));
      }
    }
  });
}

at::Tensor read_fp8_latents_cpu(const at::Tensor& entries, const at::Tensor& slots, int64_t rank, int64_t rope,
                                at::ScalarType dtype) {
  check_range(slots, entries, "read_fp8_latents");
  const auto* slot = slots.const_data_ptr<int64_t>();
  const Fp8Entry entry{.rank = rank, .rope = rope};
  const at::Tensor out = at::empty({slots.size(0), rank + rope}, entries.options().dtype(dtype));
  with_storage_type(out, "read_fp8_latents", [&]<typename T>(T) {
    for (int64_t t = 0; t < slots.size(0); ++t) {
      decode_fp8_entries(entry, entries.const_data_ptr<uint8_t>() + slot[t] * entry.bytes(), 1,
                         static_cast<T*>(out.mutable_data_ptr()) + t * (rank + rope));
    }
  });
  return out;
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("write_latents", write_latents_cpu);
  library.impl("read_fp8_latents", read_fp8_latents_cpu);
  library.impl("mla_attention", mla_attention_cpu);
}

}  // namespace
}  // namespace distill::kernels
