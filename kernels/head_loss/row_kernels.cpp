#include "kernels/head_loss/row_kernels.h"

#include <cfloat>
#include <cmath>

#include "kernels/head_loss/divergence.h"

namespace distill::kernels {
namespace {

// tanh x = (e^2x - 1) / (e^2x + 1); e^y - 1 by its own series where y is small, so that no digits cancel.
[[gnu::always_inline]] inline float vector_tanh(float x) {
  const float y = 2 * (x < 0 ? -x : x);
  const float series =
      y * (1 + y * (1 / 2.0f + y * (1 / 6.0f + y * (1 / 24.0f + y * (1 / 120.0f + y * (1 / 720.0f + y / 5040.0f))))));
  const float minus_one = y < 0.5f ? series : vector_exp(y) - 1;
  const float magnitude = minus_one / (minus_one + 2);
  return x < 0 ? -magnitude : magnitude;
}

}  // namespace

DISTILL_MULTIVERSION float largest(const float* x, int64_t count) {
  float result = -FLT_MAX;
#pragma omp simd reduction(max : result)
  for (int64_t i = 0; i < count; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

DISTILL_MULTIVERSION float sum_of_exp(const float* x, int64_t count, float max, float scale) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += vector_exp((x[i] - max) * scale);
  return sum;
}

DISTILL_MULTIVERSION void scaled_exp(float* x, int64_t count, float scale, float log_z, float factor) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) x[i] = factor * vector_exp(x[i] * scale - log_z);
}

DISTILL_MULTIVERSION void two_scaled_exps(float* x, int64_t count, float scale, float log_z, float factor,
                                          float log_z_plain, float plain_factor) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    x[i] = factor * vector_exp(x[i] * scale - log_z) + plain_factor * vector_exp(x[i] - log_z_plain);
  }
}

DISTILL_MULTIVERSION void scale_row(float* x, int64_t count, float factor) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

DISTILL_MULTIVERSION void round_to_bf16(const float* from, Bf16* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<Bf16>(from[i]);
}

DISTILL_MULTIVERSION void cap_logits(float* x, int64_t count, float cap) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) x[i] = cap * vector_tanh(x[i] / cap);
}

DISTILL_MULTIVERSION void through_cap(float* gradient, const float* x, int64_t count, float cap) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) gradient[i] *= 1 - (x[i] / cap) * (x[i] / cap);
}

DISTILL_MULTIVERSION void scaled_log(float* x, int64_t count, float scale) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) x[i] = natural_log(x[i] < 1e-30f ? 1e-30f : x[i]) * scale;
}

}  // namespace distill::kernels
