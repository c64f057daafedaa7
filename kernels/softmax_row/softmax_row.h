// What a draw from one row of logits needs, at the speed of memory: its maximum and its unnormalised softmax. Plain
// functions on one row, so that a row's result never depends on its neighbours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace distill::kernels {

// Sums and maxima are kept for chunks of this many entries, so that a draw can skip from chunk to chunk.
inline constexpr size_t kRowChunk = 256;

constexpr size_t row_chunks(size_t entries) {
  return (entries + kRowChunk - 1) / kRowChunk;
}

struct RowMaximum {
  float value = 0;
  int32_t index = 0;     // the first entry of that value
  bool has_nan = false;  // then value and index mean nothing
};

// `row` must not be empty; chunk_maxima[c] becomes the maximum of entries [c * kRowChunk, (c + 1) * kRowChunk), NaN
// left out. It has row_chunks() of the row entries.
RowMaximum row_maximum(std::span<const float> row, std::span<float> chunk_maxima);

// weights[i] = exp((row[i] - maximum) * scale), 0 below e^-87; chunk_sums[c] is the sum of weights
// [c * kRowChunk, (c + 1) * kRowChunk). `weights` has the size of the row, `chunk_sums` row_chunks() of it.
void row_exponentials(std::span<const float> row, float maximum, float scale, std::span<float> weights,
                      std::span<float> chunk_sums);

}  // namespace distill::kernels
