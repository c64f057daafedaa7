#include "kernels/head_loss/dense_rows.h"

#include "kernels/head_loss/divergence.h"
#include "kernels/head_loss/row_kernels.h"

namespace distill::kernels {
namespace {

// Log-probabilities below it are taken for it, so that vector_exp() of them is a normal number.
constexpr float kLeast = -87.0f;
// ln 1e-30, as in scaled_log(): so little that a row's other sums stay the same numbers.
constexpr double kAbsent = -69.07755278982137;

struct BlockSums {
  float student = 0, teacher = 0, entropy = 0, forward = 0, reverse = 0;
};

// The sums of DenseRows::Row relative to the block's own maxima.
DISTILL_MULTIVERSION BlockSums block_sums(const float* s, const float* t, int64_t count, float inverse, float max,
                                          float teacher_max) {
  float student = 0, teacher = 0, entropy = 0, forward = 0, reverse = 0;
#pragma omp simd reduction(+ : student, teacher, entropy, forward, reverse)
  for (int64_t i = 0; i < count; ++i) {
    const float x = s[i] * inverse;
    const float p = vector_exp(x - max);
    const float q = vector_exp(t[i] - teacher_max);
    student += p;
    teacher += q;
    entropy += q * t[i];
    forward += q * (t[i] - x);
    reverse += p * (x - t[i]);
  }
  return {student, teacher, entropy, forward, reverse};
}

using Normaliser = DenseRows::Normaliser;

template <Divergence kKind>
[[gnu::always_inline]] inline DivergenceTerm<float> term_of(float logit, float teacher, const Normaliser& n) {
  const float log_p = (logit * n.inverse - n.max) - n.log_sum;
  const float log_q = (teacher - n.teacher_max) - n.teacher_log_sum;
  const float least_p = log_p < kLeast ? kLeast : log_p;
  const float least_q = log_q < kLeast ? kLeast : log_q;
  return divergence_term<kKind>(vector_exp(least_q), vector_exp(least_p), least_q, least_p, n.mix);
}

DISTILL_MULTIVERSION DivergenceTerm<float> measured(Divergence kind, const float* s, const float* t, int64_t count,
                                                    const Normaliser& n) {
  return with_divergence(
      kind, [&]<Divergence kKind>() __attribute__((always_inline)) {
        float value = 0, slope = 0;
#pragma omp simd reduction(+ : value, slope)
        for (int64_t i = 0; i < count; ++i) {
          const auto term = term_of<kKind>(s[i], t[i], n);
          value += term.value;
          slope += term.slope;
        }
        return DivergenceTerm<float>{value, slope};
      });
}

// s = scale (slope - p slopes)
DISTILL_MULTIVERSION void gradient(Divergence kind, float* s, const float* t, int64_t count, const Normaliser& n,
                                   float scale, float slopes) {
  with_divergence(
      kind, [&]<Divergence kKind>() __attribute__((always_inline)) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          const float p = vector_exp((s[i] * n.inverse - n.max) - n.log_sum);
          s[i] = scale * (term_of<kKind>(s[i], t[i], n).slope - p * slopes);
        }
      });
}

// The same with plain_scale exp(s - max - log_sum) added, for cross-entropy.
DISTILL_MULTIVERSION void gradient_with_plain(Divergence kind, float* s, const float* t, int64_t count,
                                              const Normaliser& n, float scale, float slopes, float max, float log_sum,
                                              float plain_scale) {
  with_divergence(
      kind, [&]<Divergence kKind>() __attribute__((always_inline)) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          const float p = vector_exp((s[i] * n.inverse - n.max) - n.log_sum);
          s[i] = scale * (term_of<kKind>(s[i], t[i], n).slope - p * slopes) +
                 plain_scale * vector_exp((s[i] - max) - log_sum);
        }
      });
}

}  // namespace

DenseRows::DenseRows(const HeadLossProblem& problem)
    : problem_(problem),
      inverse_(static_cast<float>(1 / problem.options.temperature)),
      rows_(static_cast<size_t>(problem.targets)) {}

bool DenseRows::measures() const {
  return problem_.options.kind != Divergence::kForwardKl && problem_.options.kind != Divergence::kReverseKl;
}

const float* DenseRows::or_absent(const float* teacher, const Row& row, int64_t count, std::vector<float>& room) {
  if (teacher != nullptr) return teacher;
  room.assign(static_cast<size_t>(count), static_cast<float>(row.teacher_max + std::log(row.teacher_sum) + kAbsent));
  return room.data();
}

void DenseRows::take_in(int64_t i, const float* logits, const float* teacher, int64_t first, int64_t count) {
  Row& row = rows_[i];
  std::vector<float> room;
  teacher = or_absent(teacher, row, count, room);
  if (problem_.has_label(i, first, count)) row.label_logit = logits[problem_.labels[i] - first];
  const auto raise = [&](const float* x, float& max, int64_t& top) {
    const float block_max = largest(x, count);
    if (block_max > max) {
      max = block_max;
      top = first + (std::find(x, x + count, block_max) - x);
    }
    return block_max;
  };
  const float old_max = row.max;
  const float old_teacher_max = row.teacher_max;
  const float block_max = raise(logits, row.max, row.top_id);
  const float block_teacher_max = raise(teacher, row.teacher_max, row.teacher_top_id);
  const BlockSums sums = block_sums(logits, teacher, count, inverse_, block_max * inverse_, block_teacher_max);
  const auto add = [](double& total, double part, double keep, double take) { total = total * keep + part * take; };
  const double keep = std::exp((static_cast<double>(old_max) - row.max) * inverse_);
  const double take = std::exp((static_cast<double>(block_max) - row.max) * inverse_);
  add(row.sum, sums.student, keep, take);
  add(row.reverse_sum, sums.reverse, keep, take);
  const double teacher_keep = std::exp(static_cast<double>(old_teacher_max) - row.teacher_max);
  const double teacher_take = std::exp(static_cast<double>(block_teacher_max) - row.teacher_max);
  add(row.teacher_sum, sums.teacher, teacher_keep, teacher_take);
  add(row.entropy_sum, sums.entropy, teacher_keep, teacher_take);
  add(row.forward_sum, sums.forward, teacher_keep, teacher_take);
  if (inverse_ != 1) {
    add(row.sum_plain, sum_of_exp(logits, count, block_max, 1), std::exp(static_cast<double>(old_max) - row.max),
        std::exp(static_cast<double>(block_max) - row.max));
  }
}

DenseRows::Normaliser DenseRows::normaliser(const Row& row) const {
  return {.inverse = inverse_,
          .max = row.max * inverse_,
          .log_sum = static_cast<float>(std::log(row.sum)),
          .teacher_max = row.teacher_max,
          .teacher_log_sum = static_cast<float>(std::log(row.teacher_sum)),
          .mix = static_cast<float>(problem_.options.mix)};
}

void DenseRows::measure(int64_t i, const float* logits, const float* teacher, int64_t /*first*/, int64_t count) {
  Row& row = rows_[i];
  std::vector<float> room;
  teacher = or_absent(teacher, row, count, room);
  const auto sums = measured(problem_.options.kind, logits, teacher, count, normaliser(row));
  row.value += sums.value;
  row.slopes += sums.slope;
}

RowLoss DenseRows::conclude(int64_t i) {
  const HeadLossOptions& options = problem_.options;
  Row& row = rows_[i];
  const double log_z = static_cast<double>(row.max) * inverse_ + std::log(row.sum);
  const double log_z_plain = inverse_ == 1 ? log_z : row.max + std::log(row.sum_plain);
  const double teacher_log_z = row.teacher_max + std::log(row.teacher_sum);
  RowLoss loss{.kl = row.forward_sum / row.teacher_sum - teacher_log_z + log_z,
               .confidence = std::exp(row.max - log_z_plain),
               .factor = problem_.factor(i, teacher_log_z - row.entropy_sum / row.teacher_sum),
               .top = row.top_id,
               .teacher_top = row.teacher_top_id};
  if (options.kind == Divergence::kForwardKl) {
    row.value = loss.kl;
    row.slopes = -1;
  } else if (options.kind == Divergence::kReverseKl) {
    row.value = row.reverse_sum / row.sum - log_z + teacher_log_z;
    row.slopes = row.value + 1;
  }
  loss.divergence = row.value;
  const bool has_label = problem_.labels[i] != kIgnoredLabel;
  if (has_label) loss.cross_entropy = log_z_plain - row.label_logit;
  row.plain_scale = has_label ? static_cast<float>(loss.factor * options.cross_entropy) : 0;
  row.scale = static_cast<float>(loss.factor * options.divergence * options.temperature);
  return loss;
}

void DenseRows::differentiate(int64_t i, float* x, const float* teacher, int64_t first, int64_t count) {
  const HeadLossOptions& options = problem_.options;
  const Row& row = rows_[i];
  std::vector<float> room;
  teacher = or_absent(teacher, row, count, room);
  const Normaliser n = normaliser(row);
  const auto slopes = static_cast<float>(row.slopes);
  if (row.plain_scale == 0) {
    gradient(options.kind, x, teacher, count, n, row.scale, slopes);
  } else {
    gradient_with_plain(options.kind, x, teacher, count, n, row.scale, slopes, row.max,
                        static_cast<float>(std::log(inverse_ == 1 ? row.sum : row.sum_plain)), row.plain_scale);
  }
  if (problem_.has_label(i, first, count)) x[problem_.labels[i] - first] -= row.plain_scale;
}

}  // namespace distill::kernels
