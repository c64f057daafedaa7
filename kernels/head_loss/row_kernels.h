// Loops over a row of logits that vectorise.
#pragma once

#include <cstdint>

#include "kernels/multiversion.h"

namespace distill::kernels {

inline constexpr int64_t kRowsPerThread = 8;

float largest(const float* x, int64_t count);
// sum exp((x - max) * scale)
float sum_of_exp(const float* x, int64_t count, float max, float scale);
// x = factor exp(x * scale - log_z)
void scaled_exp(float* x, int64_t count, float scale, float log_z, float factor);
// x = factor exp(x * scale - log_z) + plain_factor exp(x - log_z_plain)
void two_scaled_exps(float* x, int64_t count, float scale, float log_z, float factor, float log_z_plain,
                     float plain_factor);
void scale_row(float* x, int64_t count, float factor);
void round_to_bf16(const float* from, Bf16* to, int64_t count);
// x = cap tanh(x / cap), and gradient *= 1 - (x / cap)^2 with the capped x: the derivative of that.
void cap_logits(float* x, int64_t count, float cap);
void through_cap(float* gradient, const float* x, int64_t count, float cap);
// x = ln x * scale; 0 becomes a number whose exponential is next to nothing.
void scaled_log(float* x, int64_t count, float scale);

}  // namespace distill::kernels
