// What the two ways of going through a row of logits share (sparse_rows.h: stored ids, dense_rows.h: a whole teacher
// distribution).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/head_loss/head_loss.h"

namespace distill::kernels {

// HeadLossOptions as the operator's schema carries them.
inline std::vector<double> pack_settings(const HeadLossOptions& o) {
  return {o.mix, o.divergence, o.cross_entropy, o.temperature, o.teacher_temperature, o.entropy_power, o.soft_cap};
}
inline HeadLossOptions unpack_options(int64_t kind, int64_t tail, std::span<const double> s) {
  return {.kind = static_cast<Divergence>(kind),
          .mix = s[0],
          .divergence = s[1],
          .cross_entropy = s[2],
          .temperature = s[3],
          .teacher_temperature = s[4],
          .tail = static_cast<TailRule>(tail),
          .entropy_power = s[5],
          .soft_cap = s[6]};
}

struct HeadLossProblem {
  int64_t targets, vocab;
  const int64_t* labels;
  const float* token_weights;  // times the scale
  HeadLossOptions options;

  // Whether a label of target i lies among the tokens [first, first + count), and where.
  bool has_label(int64_t i, int64_t first, int64_t count) const {
    return labels[i] >= first && labels[i] < first + count;
  }
  // Token weight of a target whose teacher has this entropy.
  double factor(int64_t i, double entropy) const {
    if (options.entropy_power == 0) return token_weights[i];
    return token_weights[i] * std::pow(1 + std::max(0.0, entropy), options.entropy_power);
  }
};

struct RowLoss {
  double divergence = 0, kl = 0, cross_entropy = 0, confidence = 0, factor = 0;
  int64_t top = 0, teacher_top = -1;
};

}  // namespace distill::kernels
