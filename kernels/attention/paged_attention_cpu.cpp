#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "kernels/attention/query_rows.h"
#include "kernels/scratch.h"
#include "kernels/storage_type.h"

namespace distill::kernels {
namespace {

constexpr int64_t kGrain = 524288;     // multiply-adds worth a thread: 4 microseconds for a query with AMX
constexpr int64_t kWriteGrain = 4096;  // cache entries worth a thread

// Neighbouring tokens of one sequence, whose query rows are computed together.
struct TokenTile {
  int64_t sequence;
  int64_t token, count;  // in the batch
  int64_t end;           // of the first token's context: one past its own position
};

std::vector<TokenTile> tiles_of(const at::Tensor& sequence_offsets, const at::Tensor& context_lengths,
                                int64_t tokens_per_tile) {
  std::vector<TokenTile> tiles;
  const auto* offset = sequence_offsets.const_data_ptr<int32_t>();
  const auto* length = context_lengths.const_data_ptr<int32_t>();
  for (int64_t s = 0; s < context_lengths.size(0); ++s) {
    for (int64_t t = offset[s]; t < offset[s + 1]; t += tokens_per_tile) {
      tiles.push_back({.sequence = s,
                       .token = t,
                       .count = std::min<int64_t>(tokens_per_tile, offset[s + 1] - t),
                       .end = length[s] - (offset[s + 1] - 1 - t)});
    }
  }
  return tiles;
}

// Numbers 0 .. count - 1 taken from both ends in turn: tiles at the end of a sequence see more than those at its start,
// and so every contiguous range of items is about as much work.
int64_t fold(int64_t item, int64_t count) {
  return item % 2 == 0 ? item / 2 : count - 1 - item / 2;
}

// What paged_attention works on, checked.
struct PagedProblem {
  at::Tensor q;            // [tokens, heads, dim], contiguous
  at::Tensor keys;         // [blocks, kv_heads, dim, block_size]
  at::Tensor values;       // [blocks, kv_heads, block_size, value_dim]
  at::Tensor block_table;  // [sequences, max_blocks], contiguous
  float scale;
  int64_t window;

  int64_t heads() const { return q.size(1); }
  int64_t kv_heads() const { return keys.size(1); }
  int64_t group() const { return heads() / kv_heads(); }
  int64_t dim() const { return keys.size(2); }
  int64_t block_size() const { return keys.size(3); }
  int64_t value_dim() const { return values.size(3); }
  QueryShape shape(int64_t positions) const {
    return {.dim = dim(), .value_dim = value_dim(), .block_size = block_size(), .positions = positions};
  }
};

// All query rows of a tile that use key-value head `kv_head`, a few at a time.
template <typename T>
void attend_tile(const PagedProblem& problem, const QueryKernel<T>& kernel, const TokenTile& tile, int64_t kv_head,
                 float* scratch, T* out) {
  const int64_t group = problem.group();
  const int64_t total = tile.count * group;
  const int64_t passes = (total + kernel.max_rows - 1) / kernel.max_rows;
  const int64_t rows_per_pass = (total + passes - 1) / passes;
  const auto* q = static_cast<const T*>(problem.q.const_data_ptr());
  const auto* keys = static_cast<const T*>(problem.keys.const_data_ptr());
  const auto* values = static_cast<const T*>(problem.values.const_data_ptr());
  QueryRows<T> rows{
      .keys = keys + kv_head * problem.dim() * problem.block_size(),
      .values = values + kv_head * problem.block_size() * problem.value_dim(),
      .blocks = problem.block_table.const_data_ptr<int32_t>() + tile.sequence * problem.block_table.size(1),
      .key_stride = problem.keys.stride(0),
      .value_stride = problem.values.stride(0),
      .dim = problem.dim(),
      .value_dim = problem.value_dim(),
      .block_size = problem.block_size(),
      .scale = problem.scale,
  };
  for (int64_t row = 0; row < total; row += rows_per_pass) {
    rows.rows = std::min(rows_per_pass, total - row);
    for (int64_t r = 0; r < rows.rows; ++r) {
      const int64_t ahead = (row + r) / group;  // tokens after the tile's first
      const int64_t item = (tile.token + ahead) * problem.heads() + kv_head * group + (row + r) % group;
      rows.q[r] = q + item * problem.dim();
      rows.out[r] = out + item * problem.value_dim();
      rows.end[r] = tile.end + ahead;
      rows.first[r] = problem.window > 0 ? std::max<int64_t>(0, rows.end[r] - problem.window) : 0;
    }
    kernel.attend(rows, scratch);
  }
}

template <typename T>
void attend_all(const PagedProblem& problem, const at::Tensor& sequence_offsets, const at::Tensor& context_lengths,
                const at::Tensor& out) {
  const QueryKernel<T>& kernel = query_kernel<T>(problem.shape(1));
  const std::vector<TokenTile> tiles =
      tiles_of(sequence_offsets, context_lengths, std::max<int64_t>(1, kernel.max_rows / problem.group()));
  int64_t covered = 0;
  int64_t longest = 1;
  int64_t work = 0;  // multiply-adds of one head
  for (const auto& tile : tiles) {
    TORCH_CHECK(tile.end > 0, "paged_attention: a context is shorter than its new tokens");
    covered += tile.count;
    longest = std::max(longest, tile.end + tile.count - 1);
    work += tile.count * tile.end * (problem.dim() + problem.value_dim());
  }
  const int64_t tokens = problem.q.size(0);
  TORCH_CHECK(covered == tokens, "paged_attention: sequence_offsets cover ", covered, " of ", tokens, " tokens");
  TORCH_CHECK((longest + problem.block_size() - 1) / problem.block_size() <= problem.block_table.size(1),
              "paged_attention: a context of ", longest, " tokens does not fit ", problem.block_table.size(1),
              " blocks");
  const auto count = static_cast<int64_t>(tiles.size());
  const int64_t items = count * problem.kv_heads();
  const int64_t grain = std::max<int64_t>(1, kGrain * items / std::max<int64_t>(1, work * problem.heads()));
  auto* to = static_cast<T*>(out.mutable_data_ptr());
  at::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    Scratch<float> scratch(kernel.scratch(problem.shape(longest)));
    for (int64_t item = begin; item < end; ++item) {
      const TokenTile& tile = tiles[static_cast<size_t>(fold(item / problem.kv_heads(), count))];
      attend_tile(problem, kernel, tile, item % problem.kv_heads(), scratch.data(), to);
    }
  });
}

at::Tensor paged_attention_cpu(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values,
                               const at::Tensor& sequence_offsets, const at::Tensor& block_table,
                               const at::Tensor& context_lengths, double scale, int64_t window) {
  const PagedProblem problem{.q = q.contiguous(),
                             .keys = keys,
                             .values = values,
                             .block_table = block_table.contiguous(),
                             .scale = static_cast<float>(scale),
                             .window = window};
  const at::Tensor out = at::empty({q.size(0), q.size(1), values.size(3)}, q.options());
  with_storage_type(problem.q, "paged_attention", [&]<typename T>(T) {
    attend_all<T>(problem, sequence_offsets.contiguous(), context_lengths.contiguous(), out);
  });
  return out;
}

template <typename T>
void write_tokens(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& k, const at::Tensor& v,
                  const at::Tensor& slots) {
  const int64_t heads = keys.size(1);
  const int64_t dim = keys.size(2);
  const int64_t block_size = keys.size(3);
  const int64_t value_dim = values.size(3);
  const auto* slot = slots.const_data_ptr<int64_t>();
  const auto* from_k = static_cast<const T*>(k.const_data_ptr());
  const auto* from_v = static_cast<const T*>(v.const_data_ptr());
  auto* to_k = static_cast<T*>(keys.mutable_data_ptr());
  auto* to_v = static_cast<T*>(values.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kWriteGrain / (heads * (dim + value_dim)));
  at::parallel_for(0, slots.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t block = slot[t] / block_size;
      const int64_t offset = slot[t] % block_size;
      TORCH_CHECK_INDEX(slot[t] >= 0 && block < keys.size(0), "write_cache: slot ", slot[t], " lies outside the cache");
      for (int64_t h = 0; h < heads; ++h) {
        const T* key = from_k + t * k.stride(0) + h * dim;
        T* column = to_k + (block * heads + h) * dim * block_size + offset;
        for (int64_t d = 0; d < dim; ++d) column[d * block_size] = key[d];
        const T* value = from_v + t * v.stride(0) + h * value_dim;
        std::copy(value, value + value_dim, to_v + ((block * heads + h) * block_size + offset) * value_dim);
      }
    }
  });
}

void write_cache_cpu(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& slots) {
  with_storage_type(keys, "write_cache", [&]<typename T>(T) { write_tokens<T>(keys, values, k, v, slots); });
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("write_cache", write_cache_cpu);
  library.impl("paged_attention", paged_attention_cpu);
}

}  // namespace
}  // namespace distill::kernels
