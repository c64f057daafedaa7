#include "kernels/stored_linear/row_products.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/stored_linear/row_kernels.h"

namespace distill::kernels {
namespace {

constexpr int64_t kStep = 64;      // inputs that the vector loops take at once
constexpr int64_t kRun = 8;        // neighbouring inputs that no layout tears apart
constexpr int64_t kPairBytes = 4;  // two bf16

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

int64_t padded(int64_t size, int64_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

}  // namespace

RowIsa best_row_isa(at::ScalarType activations, WeightType weights) {
  if (activations != at::kBFloat16 || weights == WeightType::kFp32 || !has_avx512_rows()) return RowIsa::kPortable;
  return has_amx_rows() ? RowIsa::kAmx : RowIsa::kAvx512Bf16;
}

WeightRows WeightRows::of(const StoredWeight& weight) {
  return {.values = weight.values.const_data_ptr(),
          .scales = weight.scales.defined() ? weight.scales.const_data_ptr<float>() : nullptr,
          .in = weight.in(),
          .type = weight_type(weight.values)};
}

int64_t WeightRows::row_bytes() const {
  return in * element_size(type);
}

const std::byte* WeightRows::values_of(int64_t row) const {
  return static_cast<const std::byte*>(values) + row * row_bytes();
}

const float* WeightRows::scales_of(int64_t row) const {
  const int64_t columns = (in + kScaleBlock - 1) / kScaleBlock;
  return scales ? scales + row / kScaleBlock * columns : nullptr;
}

ActivationRows::ActivationRows(int64_t rows, int64_t size, RowIsa isa, WeightType weights)
    : rows_(rows),
      size_(size),
      isa_(isa),
      shuffled_(isa == RowIsa::kAmx && weights == WeightType::kE4m3),
      row_bytes_(isa == RowIsa::kPortable ? size * 4 : padded(size, kStep) * 2),
      lines_(static_cast<size_t>((isa == RowIsa::kAmx && rows > kGroup ? padded(rows, kGroup) : rows) * row_bytes_) /
                 sizeof(Line) +
             1) {}

// Where input i of a row lies among the row's inputs: see Loader<kE4m3>.
int64_t ActivationRows::index_of(int64_t i) const {
  if (!shuffled_) return i;
  const int64_t within = i % kStep;
  const int64_t lane = within / 16;
  const int64_t half = within / 8 % 2;
  return i - within + half * 32 + lane * 8 + within % 8;
}

std::byte* ActivationRows::bf16_at(int64_t row, int64_t i) {
  const int64_t index = index_of(i);
  if (isa_ != RowIsa::kAmx) return mutable_row(row) + index * 2;
  return mutable_row(row / kGroup * kGroup) + index / 2 * pair_bytes() + row % kGroup * kPairBytes + index % 2 * 2;
}

void ActivationRows::set(int64_t row, const float* values) {
  set_part(row, 0, values, size_);
}

void ActivationRows::set(int64_t row, const Bf16* values) {
  if (isa_ == RowIsa::kPortable) {
    auto* floats = reinterpret_cast<float*>(mutable_row(row));
    for (int64_t i = 0; i < size_; ++i) floats[i] = to_float(values[i]);
    return;
  }
  const int64_t whole = size_ / kRun * kRun;
  for (int64_t i = 0; i < whole; i += kRun) set_run(row, i, values + i);
  for (int64_t i = whole; i < size_; ++i) std::memcpy(bf16_at(row, i), values + i, sizeof(Bf16));
}

void ActivationRows::set_part(int64_t row, int64_t first, const float* values, int64_t count) {
  if (isa_ == RowIsa::kPortable) {
    auto* floats = reinterpret_cast<float*>(mutable_row(row));
    std::memcpy(floats + first, values, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count;) {
    std::array<Bf16, kRun> rounded;
    const int64_t run = (first + i) % kRun == 0 ? std::min(kRun, count - i) : 1;
    for (int64_t j = 0; j < run; ++j) rounded[static_cast<size_t>(j)] = from_float<Bf16>(values[i + j]);
    if (run == kRun) {
      set_run(row, first + i, rounded.data());
    } else {
      for (int64_t j = 0; j < run; ++j) std::memcpy(bf16_at(row, first + i + j), &rounded[static_cast<size_t>(j)], 2);
    }
    i += run;
  }
}

void ActivationRows::set_run(int64_t row, int64_t i, const Bf16* values) {
  std::byte* to = bf16_at(row, i);
  if (isa_ != RowIsa::kAmx) {
    std::memcpy(to, values, kRun * sizeof(Bf16));
    return;
  }
  for (int64_t pair = 0; pair < kRun / 2; ++pair) {
    std::memcpy(to + pair * pair_bytes(), values + 2 * pair, static_cast<size_t>(kPairBytes));
  }
}

int64_t rows_per_item(int64_t rows) {
  constexpr int64_t kItemsPerThread = 8;
  int64_t size = 16;
  while (size < kScaleBlock && 2 * size * kItemsPerThread * at::get_num_threads() <= rows) size *= 2;
  return size;
}

void multiply_rows(const WeightRows& weights, int64_t first_row, int64_t rows, const ActivationRows& x, float* sums,
                   int64_t stride, const std::byte* next) {
  if (next == nullptr) next = weights.values_of(first_row + rows);
  switch (x.isa()) {
    case RowIsa::kPortable:
      return multiply_rows_portable(weights, first_row, rows, x, sums, stride);
    case RowIsa::kAvx512Bf16:
      return multiply_rows_avx512(weights, first_row, rows, x, sums, stride, next);
    case RowIsa::kAmx:
      return multiply_rows_amx(weights, first_row, rows, x, sums, stride, next);
  }
}

}  // namespace distill::kernels
