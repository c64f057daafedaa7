// For each block of the vocabulary: logits = hidden w^T, then a pass over each row.
//   1. Over all blocks: what the losses and their gradients need to know about a row (sparse_rows.h, dense_rows.h).
//   2. Over all blocks, only for gradients: logits again, turned in place into the loss's gradient d; then
//      grad_hidden += d w and grad_weight = d^T hidden.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "kernels/head_loss/dense_rows.h"
#include "kernels/head_loss/row_kernels.h"
#include "kernels/head_loss/sparse_rows.h"
#include "kernels/mixed_product.h"

namespace distill::kernels {
namespace {

constexpr int64_t kBlockMultiple = 64;
constexpr int64_t kMinBlock = 256;
// A copy of the weight in the compute dtype may take this share of what the full logits would in fp32.
constexpr int64_t kCopyShare = 20;

template <typename Body>
void for_each_row(int64_t rows, Body&& body) {
  at::parallel_for(0, rows, kRowsPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

struct LogitBlock {
  at::Tensor logits;  // [targets, count] fp32
  at::Tensor weight;  // [count, size] in the dtype of the computation; of stored probabilities undefined
  float* row(int64_t i) const { return logits.mutable_data_ptr<float>() + i * logits.size(1); }
};

// A matrix [targets, vocab] that exists a block of columns at a time: x weight^T with a cap, or the logarithm of
// stored probabilities, times a scale.
class LogitBlocks {
 public:
  LogitBlocks(at::Tensor x, const at::Tensor& weight, double cap, double scale, int64_t block)
      : x_(std::move(x)), weight_(weight.contiguous()), cap_(cap), scale_(scale) {
    const bool copy_is_small = weight.numel() * kCopyShare * x_.element_size() <= 4 * x_.size(0) * weight.size(0);
    if (copy_is_small) weight_ = weight_.to(x_.scalar_type());
    block_ = at::empty({x_.size(0) * std::min(block, weight_.size(0))}, at::kFloat);
  }
  LogitBlocks(at::Tensor probabilities, double scale, int64_t block)
      : x_(std::move(probabilities)), scale_(scale), block_(at::empty({x_.size(0) * block}, at::kFloat)) {}

  int64_t columns() const { return weight_.defined() ? weight_.size(0) : x_.size(1); }

  // Valid until the next call. `finish` is called for each row by one of several threads.
  template <typename Finish>
  LogitBlock compute(int64_t first, int64_t count, Finish&& finish) const {
    LogitBlock block{.logits = block_.narrow(0, 0, x_.size(0) * count).view({x_.size(0), count}), .weight = {}};
    if (weight_.defined()) {
      block.weight = weight_.narrow(0, first, count).to(x_.scalar_type());
      multiply_into(block.logits, x_, block.weight.t());
    } else {
      block.logits.copy_(x_.narrow(1, first, count));
    }
    for_each_row(x_.size(0), [&](int64_t i) {
      float* const row = block.row(i);
      if (cap_ > 0) cap_logits(row, count, static_cast<float>(cap_));
      if (!weight_.defined()) scaled_log(row, count, static_cast<float>(scale_));
      if (weight_.defined() && scale_ != 1) scale_row(row, count, static_cast<float>(scale_));
      finish(i, row);
    });
    return block;
  }

 private:
  at::Tensor x_, weight_;
  double cap_ = 0, scale_ = 1;
  at::Tensor block_;
};

// Columns per block, so that what each logit takes in blocks keeps to the workspace.
int64_t block_size(int64_t targets, int64_t vocab, int64_t bytes_per_logit) {
  const int64_t columns =
      kHeadLossWorkspaceBytes / std::max<int64_t>(1, targets * bytes_per_logit) / kBlockMultiple * kBlockMultiple;
  return std::min(std::max(columns, kMinBlock), vocab);
}

// The weights as [targets, vocab] if every target has one for each token, else undefined.
at::Tensor whole_distributions(const at::Tensor& offsets, const at::Tensor& ids, const at::Tensor& weights,
                               int64_t vocab) {
  const int64_t targets = offsets.numel() - 1;
  if (targets == 0 || ids.numel() != targets * vocab || !offsets.diff().eq(vocab).all().item<bool>()) return {};
  const at::Tensor rows = weights.view({targets, vocab});
  const auto* const data = ids.const_data_ptr<int64_t>();
  bool in_order = true;
  for (int64_t i = 0; i < ids.numel() && in_order; ++i) in_order = data[i] == i % vocab;
  if (in_order) return rows;
  const at::Tensor sorted = at::full_like(rows, -1).scatter_(1, ids.view({targets, vocab}), rows);
  TORCH_CHECK(sorted.min().item<float>() >= 0, "head_loss: a target has an id twice");
  return sorted;
}

struct Arguments {
  at::Tensor hidden, weight, rows;  // hidden of the targets alone
  at::IntArrayRef hidden_sizes;     // of all tokens
  bool gradients;
};
using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

struct Concluded {
  at::Tensor loss, measures, tops;
};

template <typename Rows>
Concluded conclude(const HeadLossProblem& problem, Rows& rows) {
  const HeadLossOptions& options = problem.options;
  const Concluded result{.loss = at::zeros({}, at::kFloat),
                         .measures = at::empty({5, problem.targets}, at::kFloat),
                         .tops = at::empty({2, problem.targets}, at::kLong)};
  std::vector<RowLoss> losses(static_cast<size_t>(problem.targets));
  for_each_row(problem.targets, [&](int64_t i) { losses[static_cast<size_t>(i)] = rows.conclude(i); });
  auto* const measures = result.measures.template mutable_data_ptr<float>();
  auto* const tops = result.tops.template mutable_data_ptr<int64_t>();
  double total = 0;
  for (int64_t i = 0; i < problem.targets; ++i) {
    const RowLoss& row = losses[static_cast<size_t>(i)];
    const double values[] = {row.divergence, row.kl, row.cross_entropy, row.confidence, row.factor};
    for (int64_t k = 0; k < 5; ++k) measures[k * problem.targets + i] = static_cast<float>(values[k]);
    tops[i] = row.top;
    tops[problem.targets + i] = row.teacher_top;
    total += row.factor * (options.divergence * options.temperature * options.temperature * row.divergence +
                           options.cross_entropy * row.cross_entropy);
  }
  result.loss.fill_(total);
  return result;
}

// `teacher` is null for SparseRows.
template <typename Rows>
Results run(const Arguments& in, const HeadLossProblem& problem, Rows rows, const LogitBlocks* teacher, int64_t block) {
  const LogitBlocks student(in.hidden, in.weight, problem.options.soft_cap, 1, block);
  const int64_t known = teacher != nullptr ? teacher->columns() : 0;  // the teacher's vocabulary
  // visit(i, logits, teacher's logits or null, first, count) for the rows of all blocks; then finish(block, first,
  // count). The teacher knows all tokens of a block or none.
  const auto pass = [&](auto&& visit, auto&& finish) {
    for (int64_t first = 0, count = 0; first < problem.vocab; first += count) {
      const bool is_known = first < known;
      count = std::min(block, (is_known ? known : problem.vocab) - first);
      const auto theirs = is_known ? teacher->compute(first, count, [](int64_t, float*) {}) : LogitBlock();
      const auto here = student.compute(first, count, [&](int64_t i, float* row) {
        visit(i, row, is_known ? theirs.row(i) : nullptr, first, count);
      });
      finish(here, first, count);
    }
  };
  const auto nothing = [](const LogitBlock&, int64_t, int64_t) {};
  pass([&](auto&&... row) { rows.take_in(row...); }, nothing);
  if (rows.measures()) pass([&](auto&&... row) { rows.measure(row...); }, nothing);
  const Concluded result = conclude(problem, rows);
  if (!in.gradients) return {result.loss, result.measures, result.tops, at::Tensor(), at::Tensor()};

  const auto cap = static_cast<float>(problem.options.soft_cap);
  const bool is_bf16 = in.hidden.scalar_type() == at::kBFloat16;
  const at::Tensor rounded = is_bf16 ? at::empty({problem.targets * block}, at::kBFloat16) : at::Tensor();
  auto* const bf16 = is_bf16 ? static_cast<Bf16*>(rounded.mutable_data_ptr()) : nullptr;
  const at::Tensor grad_selected = at::zeros(in.hidden.sizes(), at::kFloat);
  const at::Tensor grad_weight = at::empty(in.weight.sizes(), in.weight.options());
  pass(
      [&](int64_t i, float* row, const float* theirs, int64_t first, int64_t count) {
        const std::vector<float> capped(row, row + (cap > 0 ? count : 0));
        rows.differentiate(i, row, theirs, first, count);
        if (cap > 0) through_cap(row, capped.data(), count, cap);
        if (is_bf16) round_to_bf16(row, bf16 + i * count, count);
      },
      [&](const LogitBlock& here, int64_t first, int64_t count) {
        const at::Tensor d =
            is_bf16 ? rounded.narrow(0, 0, problem.targets * count).view({problem.targets, count}) : here.logits;
        multiply_into(grad_selected, d, here.weight, /*beta=*/1);
        const at::Tensor grad_block = grad_weight.narrow(0, first, count);
        if (in.weight.scalar_type() == at::kFloat) {
          multiply_into(grad_block, d.t(), in.hidden);
        } else {
          const at::Tensor fp32 = at::empty(grad_block.sizes(), at::kFloat);
          multiply_into(fp32, d.t(), in.hidden);
          grad_block.copy_(fp32);
        }
      });
  at::Tensor grad_hidden = at::zeros(in.hidden_sizes, in.hidden.options());
  grad_hidden.index_copy_(0, in.rows, grad_selected.to(in.hidden.scalar_type()));
  return {result.loss, result.measures, result.tops, grad_hidden, grad_weight};
}

Results head_loss_cpu(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& rows,
                      const at::Tensor& labels_in, const at::Tensor& offsets_in, const at::Tensor& ids_in,
                      const at::Tensor& weights_in, const at::Tensor& uncovered_in, const at::Tensor& teacher_hidden,
                      const at::Tensor& teacher_weight, const at::Tensor& token_weights_in, int64_t kind, int64_t tail,
                      at::ArrayRef<double> settings, bool with_gradients) {
  const at::Tensor labels = labels_in.contiguous();
  const at::Tensor token_weights = token_weights_in.contiguous();
  const HeadLossProblem problem{.targets = rows.numel(),
                                .vocab = weight.size(0),
                                .labels = labels.const_data_ptr<int64_t>(),
                                .token_weights = token_weights.const_data_ptr<float>(),
                                .options = unpack_options(kind, tail, {settings.data(), settings.size()})};
  const Arguments in{.hidden = hidden.index_select(0, rows),
                     .weight = weight,
                     .rows = rows,
                     .hidden_sizes = hidden.sizes(),
                     .gradients = with_gradients};
  const double teacher_scale = 1 / problem.options.teacher_temperature;
  const int64_t block = block_size(problem.targets, problem.vocab, /*bytes_per_logit=*/10);
  if (teacher_hidden.defined()) {
    const LogitBlocks teacher(teacher_hidden.contiguous(), teacher_weight, 0, teacher_scale, block);
    return run(in, problem, DenseRows(problem), &teacher, block);
  }
  const at::Tensor ids = ids_in.contiguous();
  const at::Tensor weights = weights_in.contiguous();
  const at::Tensor offsets = offsets_in.contiguous();
  if (const at::Tensor whole = whole_distributions(offsets, ids, weights, problem.vocab); whole.defined()) {
    const LogitBlocks teacher(whole, teacher_scale, block);
    return run(in, problem, DenseRows(problem), &teacher, block);
  }
  TORCH_CHECK(problem.options.teacher_temperature == 1,
              "head_loss: stored distributions without the whole vocabulary keep their temperature");
  const at::Tensor uncovered = uncovered_in.contiguous();
  return run(in, problem,
             SparseRows(problem, offsets.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>(),
                        weights.const_data_ptr<float>(), uncovered.const_data_ptr<float>()),
             nullptr, block_size(problem.targets, problem.vocab, /*bytes_per_logit=*/6));
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("head_loss", head_loss_cpu);
}

}  // namespace
}  // namespace distill::kernels
