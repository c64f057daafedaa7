// For each block of the vocabulary: logits = hidden w^T, then a pass over each row.
//   1. Over all blocks: the row's log-sum-exp of the logits without an id ("tail"), the logits of its ids and label.
//   2. Over all blocks, only for gradients: logits again, turned in place into the loss's gradient d; then
//      grad_hidden += d w and grad_weight = d^T hidden.
// With p = softmax(logits / T), M = sum of the weights q, u = uncovered and p_tail = sum of p outside the ids:
//   KL = sum q (log q - log p) + u (log u - log p_tail),
//   dKL/dlogit_k = ((M + u) p_k - q_k) / T inside the ids and ((M + u) p_k - u p_k / p_tail) / T outside.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/head_loss/head_loss.h"
#include "kernels/mixed_product.h"
#include "kernels/multiversion.h"

namespace distill::kernels {
namespace {

constexpr int64_t kBlockMultiple = 64;
constexpr int64_t kMinBlock = 256;
constexpr int64_t kRowsPerThread = 8;

struct Problem {
  int64_t targets, vocab, size;
  const int64_t* labels;
  const int64_t* offsets;
  const float* uncovered;
  const float* factors;  // of each target's loss
  double divergence, cross_entropy, temperature;
  TailRule tail;
};

// What pass 1 learns about one target, and what pass 2 needs.
struct Row {
  int64_t next = 0;      // first entry whose id lies in this block or a later one
  float max = -FLT_MAX;  // of the tail's logits
  double sum = 0;        // of exp((logit - max) / T) over the tail
  double sum_plain = 0;  // the same with T = 1, where cross-entropy needs it
  float top = -FLT_MAX;  // the largest logit
  int64_t top_id = 0;    //   and its token
  float label_logit = 0;
  double log_z = 0;         // log-sum-exp of logits / T over the vocabulary
  double log_z_plain = 0;   // of the logits
  float tail_scale = 0;     // gradient of a tail token: tail_scale exp(logit / T - log_z)
  float plain_scale = 0;    //   + plain_scale exp(logit - log_z_plain)
  double id_scale = 0;      // gradient of a token with an id: id_scale exp(logit / T - log_z) - weight_scale q
  double weight_scale = 0;  //   + the same second term
  double label_scale = 0;   // taken off the label's gradient
};

// The ids of every target in rising order, with their weights.
struct SortedTargets {
  std::vector<int64_t> ids;
  std::vector<float> weights;
  std::vector<float> logits;  // filled by pass 1

  SortedTargets(const Problem& problem, const int64_t* ids_in, const float* weights_in)
      : ids(problem.offsets[problem.targets]), weights(ids.size()), logits(ids.size()) {
    at::parallel_for(0, problem.targets, kRowsPerThread, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> order;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = problem.offsets[i];
        const int64_t count = problem.offsets[i + 1] - first;
        order.resize(count);
        std::iota(order.begin(), order.end(), first);
        const auto rising = [&](int64_t a, int64_t b) { return ids_in[a] < ids_in[b]; };
        if (!std::is_sorted(order.begin(), order.end(), rising)) std::sort(order.begin(), order.end(), rising);
        double mass = 0;
        for (int64_t j = 0; j < count; ++j) mass += weights_in[first + j];
        const double scale = problem.tail == TailRule::kRenormalise && mass > 0 ? 1 / mass : 1;
        for (int64_t j = 0; j < count; ++j) {
          ids[first + j] = ids_in[order[j]];
          weights[first + j] = static_cast<float>(weights_in[order[j]] * scale);
          TORCH_CHECK(j == 0 || ids[first + j] != ids[first + j - 1], "head_loss: target ", i, " has id ",
                      ids[first + j], " twice");
          TORCH_CHECK(weights[first + j] >= 0, "head_loss: target ", i, " has the weight ", weights[first + j]);
        }
      }
    });
  }
};

// The largest value, and sum exp((x - max) * scale), in one call each so that both vectorise.
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

DISTILL_MULTIVERSION void two_scaled_exps(float* x, int64_t count, float scale, const Row& row) {
  const auto log_z = static_cast<float>(row.log_z);
  const auto log_z_plain = static_cast<float>(row.log_z_plain);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    x[i] = row.tail_scale * vector_exp(x[i] * scale - log_z) + row.plain_scale * vector_exp(x[i] - log_z_plain);
  }
}

DISTILL_MULTIVERSION void round_to_bf16(const float* from, Bf16* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<Bf16>(from[i]);
}

// Pass 1 of one row: takes in its logits of the tokens [first, first + count), which it overwrites.
void take_in(const Problem& problem, SortedTargets& sorted, int64_t i, float* logits, int64_t first, int64_t count,
             Row& row) {
  if (const int64_t label = problem.labels[i] - first; label >= 0 && label < count) row.label_logit = logits[label];
  for (; row.next < problem.offsets[i + 1] && sorted.ids[row.next] < first + count; ++row.next) {
    float& logit = logits[sorted.ids[row.next] - first];
    sorted.logits[row.next] = logit;
    if (logit > row.top) {
      row.top = logit;
      row.top_id = sorted.ids[row.next];
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
  add(row.sum, 1 / problem.temperature);
  if (problem.temperature != 1) add(row.sum_plain, 1);
  row.max = max;
}

// log(exp(tail) + sum of exp(logit * scale) over the target's ids).
double log_sum_exp(double tail, const std::vector<float>& logits, int64_t begin, int64_t end, double scale) {
  double max = tail;
  for (int64_t e = begin; e < end; ++e) max = std::max(max, logits[e] * scale);
  double sum = std::exp(tail - max);
  for (int64_t e = begin; e < end; ++e) sum += std::exp(logits[e] * scale - max);
  return max + std::log(sum);
}

struct RowLoss {
  double divergence, cross_entropy, total;
};

// Between the passes: the row's losses and the factors of its gradient.
RowLoss conclude(const Problem& problem, const SortedTargets& sorted, int64_t i, Row& row) {
  const int64_t begin = problem.offsets[i];
  const int64_t end = problem.offsets[i + 1];
  const double t = problem.temperature;
  const bool has_tail = end - begin < problem.vocab;
  const double log_tail = has_tail ? row.max / t + std::log(row.sum) : -INFINITY;
  row.log_z = log_sum_exp(log_tail, sorted.logits, begin, end, 1 / t);
  row.log_z_plain = row.log_z;
  if (t != 1) {
    const double log_tail_plain = has_tail ? row.max + std::log(row.sum_plain) : -INFINITY;
    row.log_z_plain = log_sum_exp(log_tail_plain, sorted.logits, begin, end, 1);
  }

  double mass = 0;
  double divergence = 0;
  for (int64_t e = begin; e < end; ++e) {
    const double q = sorted.weights[e];
    mass += q;
    if (q > 0) divergence += q * (std::log(q) - (sorted.logits[e] / t - row.log_z));
  }
  const bool ghost = problem.tail == TailRule::kGhost && has_tail && problem.uncovered[i] > 0;
  const double uncovered = ghost ? problem.uncovered[i] : 0.0;
  const double log_p_tail = log_tail - row.log_z;
  if (ghost) divergence += uncovered * (std::log(uncovered) - log_p_tail);
  const double cross_entropy = row.log_z_plain - row.label_logit;

  const double divergence_scale =
      problem.factors[i] * problem.divergence * t;  // T^2 of the loss, 1/T of the chain rule
  const double label_scale = problem.factors[i] * problem.cross_entropy;
  row.weight_scale = divergence_scale;
  row.id_scale = divergence_scale * (mass + uncovered);
  row.label_scale = label_scale;
  row.plain_scale = static_cast<float>(label_scale);
  // A tail that the student all but excludes pulls no harder than at 1e-30, so that nothing overflows.
  const double tail_pull = ghost ? uncovered / std::max(std::exp(log_p_tail), 1e-30) : 0.0;
  row.tail_scale = static_cast<float>(divergence_scale * (mass + uncovered - tail_pull));
  row.next = begin;
  return {
      .divergence = divergence,
      .cross_entropy = cross_entropy,
      .total = problem.factors[i] * (problem.divergence * t * t * divergence + problem.cross_entropy * cross_entropy)};
}

// Pass 2 of one row: its logits of the tokens [first, first + count) become the gradient of the loss.
void differentiate(const Problem& problem, const SortedTargets& sorted, int64_t i, float* x, int64_t first,
                   int64_t count, Row& row) {
  const double t = problem.temperature;
  if (t == 1) {
    scaled_exp(x, count, 1, static_cast<float>(row.log_z), row.tail_scale + row.plain_scale);
  } else if (row.plain_scale == 0) {
    scaled_exp(x, count, static_cast<float>(1 / t), static_cast<float>(row.log_z), row.tail_scale);
  } else {
    two_scaled_exps(x, count, static_cast<float>(1 / t), row);
  }
  for (; row.next < problem.offsets[i + 1] && sorted.ids[row.next] < first + count; ++row.next) {
    const double logit = sorted.logits[row.next];
    x[sorted.ids[row.next] - first] = static_cast<float>(row.id_scale * std::exp(logit / t - row.log_z) +
                                                         row.label_scale * std::exp(logit - row.log_z_plain) -
                                                         row.weight_scale * sorted.weights[row.next]);
  }
  if (const int64_t label = problem.labels[i] - first; label >= 0 && label < count) {
    x[label] -= static_cast<float>(row.label_scale);
  }
}

// Calls body(first, w, logits): the logits [targets, count] fp32 of the tokens [first, first + count) and their rows of
// the weight in hidden's dtype. Both are gone after the call.
template <typename Body>
void for_each_block(const at::Tensor& hidden, const at::Tensor& weight, int64_t block, Body&& body) {
  const int64_t vocab = weight.size(0);
  const at::Tensor logits = at::empty({hidden.size(0) * std::min(block, vocab)}, at::kFloat);
  for (int64_t first = 0; first < vocab; first += block) {
    const int64_t count = std::min(block, vocab - first);
    const at::Tensor w = weight.narrow(0, first, count).to(hidden.scalar_type());
    const at::Tensor here = logits.narrow(0, 0, hidden.size(0) * count).view({hidden.size(0), count});
    multiply_into(here, hidden, w.t());
    body(first, w, here);
  }
}

// Columns of logits per block, so that the fp32 block and its bf16 copy keep to the workspace.
int64_t block_size(int64_t targets, int64_t vocab) {
  const int64_t columns = kHeadLossWorkspaceBytes / std::max<int64_t>(1, targets * 6) / kBlockMultiple * kBlockMultiple;
  return std::min(std::max(columns, kMinBlock), vocab);
}

template <typename Body>
void for_each_row(int64_t rows, Body&& body) {
  at::parallel_for(0, rows, kRowsPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> head_loss_cpu(
    const at::Tensor& hidden_in, const at::Tensor& weight_in, const at::Tensor& rows_in, const at::Tensor& labels_in,
    const at::Tensor& offsets_in, const at::Tensor& ids_in, const at::Tensor& weights_in,
    const at::Tensor& uncovered_in, const at::Tensor& factors_in, double divergence, double cross_entropy,
    double temperature, int64_t tail, bool gradients) {
  const at::Tensor hidden = hidden_in.index_select(0, rows_in);
  const at::Tensor weight = weight_in.contiguous();
  const at::Tensor labels = labels_in.contiguous();
  const at::Tensor offsets = offsets_in.contiguous();
  const at::Tensor ids = ids_in.contiguous();
  const at::Tensor weights = weights_in.contiguous();
  const at::Tensor uncovered = uncovered_in.contiguous();
  const at::Tensor factors = factors_in.contiguous();
  const Problem problem{.targets = hidden.size(0),
                        .vocab = weight.size(0),
                        .size = hidden.size(1),
                        .labels = labels.const_data_ptr<int64_t>(),
                        .offsets = offsets.const_data_ptr<int64_t>(),
                        .uncovered = uncovered.const_data_ptr<float>(),
                        .factors = factors.const_data_ptr<float>(),
                        .divergence = divergence,
                        .cross_entropy = cross_entropy,
                        .temperature = temperature,
                        .tail = static_cast<TailRule>(tail)};
  SortedTargets sorted(problem, ids.const_data_ptr<int64_t>(), weights.const_data_ptr<float>());
  std::vector<Row> state(problem.targets);
  for (int64_t i = 0; i < problem.targets; ++i) state[i].next = problem.offsets[i];
  const int64_t block = block_size(problem.targets, problem.vocab);

  for_each_block(hidden, weight, block, [&](int64_t first, const at::Tensor&, const at::Tensor& logits) {
    auto* data = logits.mutable_data_ptr<float>();
    const int64_t count = logits.size(1);
    for_each_row(problem.targets,
                 [&](int64_t i) { take_in(problem, sorted, i, data + i * count, first, count, state[i]); });
  });

  const at::Tensor out_divergence = at::empty({problem.targets}, at::kFloat);
  const at::Tensor out_cross_entropy = at::empty({problem.targets}, at::kFloat);
  const at::Tensor out_top = at::empty({problem.targets}, at::kLong);
  double total = 0;
  for (int64_t i = 0; i < problem.targets; ++i) {
    const RowLoss loss = conclude(problem, sorted, i, state[i]);
    out_divergence.mutable_data_ptr<float>()[i] = static_cast<float>(loss.divergence);
    out_cross_entropy.mutable_data_ptr<float>()[i] = static_cast<float>(loss.cross_entropy);
    out_top.mutable_data_ptr<int64_t>()[i] = state[i].top_id;
    total += loss.total;
  }
  const at::Tensor loss = at::scalar_tensor(total, at::kFloat);
  if (!gradients) return {loss, out_divergence, out_cross_entropy, out_top, at::Tensor(), at::Tensor()};

  const bool is_bf16 = hidden.scalar_type() == at::kBFloat16;
  const at::Tensor rounded = is_bf16 ? at::empty({problem.targets * block}, at::kBFloat16) : at::Tensor();
  const at::Tensor grad_selected = at::zeros({problem.targets, problem.size}, at::kFloat);
  const at::Tensor grad_weight = at::empty(weight.sizes(), weight.options());
  for_each_block(hidden, weight, block, [&](int64_t first, const at::Tensor& w, const at::Tensor& logits) {
    auto* data = logits.mutable_data_ptr<float>();
    auto* bf16 = is_bf16 ? static_cast<Bf16*>(rounded.mutable_data_ptr()) : nullptr;
    const int64_t count = logits.size(1);
    for_each_row(problem.targets, [&](int64_t i) {
      differentiate(problem, sorted, i, data + i * count, first, count, state[i]);
      if (is_bf16) round_to_bf16(data + i * count, bf16 + i * count, count);
    });
    const at::Tensor d =
        is_bf16 ? rounded.narrow(0, 0, problem.targets * count).view({problem.targets, count}) : logits;
    multiply_into(grad_selected, d, w, /*beta=*/1);
    const at::Tensor grad_block = grad_weight.narrow(0, first, count);
    if (weight.scalar_type() == at::kFloat) {
      multiply_into(grad_block, d.t(), hidden);
    } else {
      const at::Tensor fp32 = at::empty({count, problem.size}, at::kFloat);
      multiply_into(fp32, d.t(), hidden);
      grad_block.copy_(fp32);
    }
  });
  at::Tensor grad_hidden = at::zeros(hidden_in.sizes(), hidden.options());
  grad_hidden.index_copy_(0, rows_in, grad_selected.to(hidden.scalar_type()));
  return {loss, out_divergence, out_cross_entropy, out_top, grad_hidden, grad_weight};
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("head_loss", head_loss_cpu);
}

}  // namespace
}  // namespace distill::kernels
