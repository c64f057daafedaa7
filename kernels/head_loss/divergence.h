// What one token adds to a divergence between the teacher's distribution q and the student's p, and how that moves the
// student. With v(q, p) the token's share, D = sum v and the slope h = p dv/dp, the gradient in the student's logits is
//   dD/dlogit_k = (h_k - p_k sum_j h_j) / T        (the softmax's Jacobian)
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/head_loss/head_loss.h"
#include "kernels/multiversion.h"

namespace distill::kernels {

template <typename T>
struct DivergenceTerm {
  T value;  // v
  T slope;  // h
};

// ln x for normal x > 0 with a relative error below 3e-7; free of calls and branches.
[[gnu::always_inline]] inline float natural_log(float x) {
  // x = 2^e f with f in [sqrt(1/2), sqrt(2)); ln f = 2 artanh(s) with s = (f - 1) / (f + 1), |s| < 0.172.
  const auto bits = std::bit_cast<int32_t>(x);
  const int32_t e = (bits - 0x3F3504F3) >> 23;
  const float f = std::bit_cast<float>(bits - (e << 23));
  const float s = (f - 1.0f) / (f + 1.0f);
  const float z = s * s;
  const float series = 2.0f + z * (2.0f / 3 + z * (2.0f / 5 + z * (2.0f / 7 + z * (2.0f / 9))));
  return s * series + static_cast<float>(e) * 0.693147180559945309f;
}
[[gnu::always_inline]] inline double natural_log(double x) {
  return std::log(x);
}

// p > 0. `log_q` and `log_p` are the logarithms of q and p; where q is 0, of a number that only keeps the result
// finite.
template <Divergence kKind, typename T>
[[gnu::always_inline]] inline DivergenceTerm<T> divergence_term(T q, T p, T log_q, T log_p, T mix) {
  if constexpr (kKind == Divergence::kForwardKl) {
    return {q * (log_q - log_p), -q};
  } else if constexpr (kKind == Divergence::kReverseKl) {
    return {p * (log_p - log_q), p * (log_p - log_q + 1)};
  } else if constexpr (kKind == Divergence::kJensenShannon) {
    // log p - log m as one logarithm of the ratio: digits would cancel.
    const T log_ratio = -natural_log((mix * q + (1 - mix) * p) / p);
    const T of_student = (1 - mix) * p * log_ratio;
    return {mix * q * (log_q - log_p + log_ratio) + of_student, of_student};
  } else if constexpr (kKind == Divergence::kTotalVariation) {
    const T sign = p > q ? T(0.5) : T(-0.5);
    return {sign * (p - q), sign * p};
  } else if constexpr (kKind == Divergence::kSkewForwardKl) {
    const T m = mix * q + (1 - mix) * p;
    return {q * (log_q - natural_log(m)), -(1 - mix) * q * p / m};
  } else {
    const T m = (1 - mix) * q + mix * p;
    const T log_ratio = -natural_log(m / p);
    return {p * log_ratio, p * (log_ratio + 1 - mix * p / m)};
  }
}

// Calls body.template operator()<kind>() for a kind known at run time.
template <typename Body>
[[gnu::always_inline]] inline auto with_divergence(Divergence kind, Body&& body) {
  switch (kind) {
    case Divergence::kReverseKl:
      return body.template operator()<Divergence::kReverseKl>();
    case Divergence::kJensenShannon:
      return body.template operator()<Divergence::kJensenShannon>();
    case Divergence::kTotalVariation:
      return body.template operator()<Divergence::kTotalVariation>();
    case Divergence::kSkewForwardKl:
      return body.template operator()<Divergence::kSkewForwardKl>();
    case Divergence::kSkewReverseKl:
      return body.template operator()<Divergence::kSkewReverseKl>();
    case Divergence::kForwardKl:
      break;
  }
  return body.template operator()<Divergence::kForwardKl>();
}

}  // namespace distill::kernels
