#include "kernels/head_loss/sparse_rows.h"

#include <ATen/Parallel.h>

#include <numeric>

#include "kernels/head_loss/divergence.h"
#include "kernels/head_loss/row_kernels.h"

namespace distill::kernels {
namespace {

constexpr double kSmallest = 1e-30;  // probabilities below it are taken for it where only its logarithm matters

// log(exp(tail) + sum of exp(logit * scale) over the entries [begin, end)).
double log_sum_exp(double tail, const std::vector<float>& logits, int64_t begin, int64_t end, double scale) {
  double max = tail;
  for (int64_t e = begin; e < end; ++e) max = std::max(max, logits[e] * scale);
  double sum = std::exp(tail - max);
  for (int64_t e = begin; e < end; ++e) sum += std::exp(logits[e] * scale - max);
  return max + std::log(sum);
}

double safe_exp(double x) {
  return std::exp(std::max(x, -600.0));
}

double safe_log(double x) {
  return std::log(std::max(x, kSmallest));
}

}  // namespace

SparseRows::SparseRows(const HeadLossProblem& problem, const int64_t* offsets, const int64_t* ids, const float* weights,
                       const float* uncovered)
    : problem_(problem),
      offsets_(offsets),
      uncovered_(uncovered),
      ids_(offsets[problem.targets]),
      weights_(ids_.size()),
      values_(ids_.size()),
      rows_(problem.targets) {
  const bool renormalise = problem.options.tail == TailRule::kRenormalise;
  at::parallel_for(0, problem.targets, kRowsPerThread, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> order;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = offsets[i];
      const int64_t count = offsets[i + 1] - first;
      rows_[i].next = first;
      order.resize(count);
      std::iota(order.begin(), order.end(), first);
      const auto rising = [&](int64_t a, int64_t b) { return ids[a] < ids[b]; };
      if (!std::is_sorted(order.begin(), order.end(), rising)) std::sort(order.begin(), order.end(), rising);
      const double mass = std::accumulate(weights + first, weights + first + count, 0.0);
      const double scale = renormalise && mass > 0 ? 1 / mass : 1;
      for (int64_t j = 0; j < count; ++j) {
        ids_[first + j] = ids[order[j]];
        weights_[first + j] = static_cast<float>(weights[order[j]] * scale);
        TORCH_CHECK(j == 0 || ids_[first + j] != ids_[first + j - 1], "head_loss: target ", i, " has id ",
                    ids_[first + j], " twice");
        TORCH_CHECK(weights_[first + j] >= 0, "head_loss: target ", i, " has the weight ", weights_[first + j]);
      }
    }
  });
}

void SparseRows::take_in(int64_t i, float* logits, const float* /*no_teacher*/, int64_t first, int64_t count) {
  Row& row = rows_[i];
  if (problem_.has_label(i, first, count)) row.label_logit = logits[problem_.labels[i] - first];
  for (; row.next < offsets_[i + 1] && ids_[row.next] < first + count; ++row.next) {
    float& logit = logits[ids_[row.next] - first];
    values_[row.next] = logit;
    if (logit > row.top) {
      row.top = logit;
      row.top_id = ids_[row.next];
    }
    logit = -FLT_MAX;  // leaves the tail
  }
  const float block_max = largest(logits, count);
  if (block_max == -FLT_MAX) return;
  if (block_max > row.top) {
    row.top = block_max;
    row.top_id = first + (std::find(logits, logits + count, block_max) - logits);
  }
  const float max = std::max(row.max, block_max);
  const auto add = [&](double& sum, double scale) {
    sum = sum * std::exp((static_cast<double>(row.max) - max) * scale) +
          sum_of_exp(logits, count, block_max, static_cast<float>(scale)) *
              std::exp((static_cast<double>(block_max) - max) * scale);
  };
  add(row.sum, 1 / problem_.options.temperature);
  if (problem_.options.temperature != 1) add(row.sum_plain, 1);
  row.max = max;
}

RowLoss SparseRows::conclude(int64_t i) {
  const HeadLossOptions& options = problem_.options;
  Row& row = rows_[i];
  const int64_t begin = offsets_[i];
  const int64_t end = offsets_[i + 1];
  row.next = begin;
  const double t = options.temperature;
  const bool has_tail = end - begin < problem_.vocab;
  const double log_tail = has_tail ? row.max / t + std::log(row.sum) : -INFINITY;
  const double log_z = log_sum_exp(log_tail, values_, begin, end, 1 / t);
  double log_z_plain = log_z;
  if (t != 1) {
    const double log_tail_plain = has_tail ? row.max + std::log(row.sum_plain) : -INFINITY;
    log_z_plain = log_sum_exp(log_tail_plain, values_, begin, end, 1);
  }

  RowLoss loss{.confidence = std::exp(row.top - log_z_plain), .top = row.top_id};
  double entropy = 0;
  float largest_weight = 0;
  for (int64_t e = begin; e < end; ++e) {
    const double q = weights_[e];
    if (q <= 0) continue;
    const double log_q = std::log(q);
    entropy -= q * log_q;
    loss.kl += q * (log_q - (values_[e] / t - log_z));
    if (weights_[e] > largest_weight) {
      largest_weight = weights_[e];
      loss.teacher_top = ids_[e];
    }
  }
  const double q_tail = options.tail == TailRule::kGhost && has_tail ? std::max(0.0f, uncovered_[i]) : 0.0;
  const double log_p_tail = log_tail - log_z;
  if (q_tail > 0) {
    entropy -= q_tail * std::log(q_tail);
    loss.kl += q_tail * (std::log(q_tail) - log_p_tail);
  }
  loss.factor = problem_.factor(i, entropy);
  const bool has_label = problem_.labels[i] != kIgnoredLabel;
  if (has_label) loss.cross_entropy = log_z_plain - row.label_logit;
  const double plain_scale = has_label ? loss.factor * options.cross_entropy : 0;
  const double scale = loss.factor * options.divergence * t;  // T^2 of the loss, 1/T of the chain rule

  with_divergence(options.kind, [&]<Divergence kKind>() {
    DivergenceTerm<double> tail{};
    const double p_tail = safe_exp(log_p_tail);
    if (has_tail) {
      tail = divergence_term<kKind>(q_tail, p_tail, safe_log(q_tail), std::max(log_p_tail, std::log(kSmallest)),
                                    options.mix);
    }
    loss.divergence = tail.value;
    double slopes = tail.slope;
    for (int64_t e = begin; e < end; ++e) {
      const double log_p = values_[e] / t - log_z;
      const auto term =
          divergence_term<kKind>(double{weights_[e]}, safe_exp(log_p), safe_log(weights_[e]), log_p, options.mix);
      loss.divergence += term.value;
      slopes += term.slope;
    }
    for (int64_t e = begin; e < end; ++e) {
      const double log_p = values_[e] / t - log_z;
      const double p = safe_exp(log_p);
      const double slope =
          divergence_term<kKind>(double{weights_[e]}, p, safe_log(weights_[e]), log_p, options.mix).slope;
      values_[e] = static_cast<float>(scale * (slope - p * slopes) + plain_scale * std::exp(values_[e] - log_z_plain));
    }
    // A tail that the student all but excludes pulls no harder than at kSmallest, so that nothing overflows.
    row.tail_scale = static_cast<float>(scale * (tail.slope / std::max(p_tail, kSmallest) - slopes));
  });
  row.log_z = static_cast<float>(log_z);
  row.log_z_plain = static_cast<float>(log_z_plain);
  row.plain_scale = static_cast<float>(plain_scale);
  return loss;
}

void SparseRows::differentiate(int64_t i, float* x, const float* /*no_teacher*/, int64_t first, int64_t count) {
  Row& row = rows_[i];
  const auto inverse = static_cast<float>(1 / problem_.options.temperature);
  if (inverse == 1) {
    scaled_exp(x, count, 1, row.log_z, row.tail_scale + row.plain_scale);
  } else if (row.plain_scale == 0) {
    scaled_exp(x, count, inverse, row.log_z, row.tail_scale);
  } else {
    two_scaled_exps(x, count, inverse, row.log_z, row.tail_scale, row.log_z_plain, row.plain_scale);
  }
  for (; row.next < offsets_[i + 1] && ids_[row.next] < first + count; ++row.next) {
    x[ids_[row.next] - first] = values_[row.next];
  }
  if (problem_.has_label(i, first, count)) x[problem_.labels[i] - first] -= row.plain_scale;
}

}  // namespace distill::kernels
