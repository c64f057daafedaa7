// Rows of logits against stored ids. All tokens without an id form one more symbol, the tail; since the divergence
// looks at the ids and the tail alone, everything about it is known after one pass over the row.
#pragma once

#include <cfloat>
#include <vector>

#include "kernels/head_loss/row_loss.h"

namespace distill::kernels {

class SparseRows {
 public:
  // Arguments as in HeadLossTargets. Throws if an id occurs twice in a target or a weight is negative.
  SparseRows(const HeadLossProblem& problem, const int64_t* offsets, const int64_t* ids, const float* weights,
             const float* uncovered);

  // Row i's logits of the tokens [first, first + count), block by block in rising order; overwrites them.
  void take_in(int64_t i, float* logits, const float* no_teacher, int64_t first, int64_t count);
  // After all blocks. What DenseRows might need a second look for is known.
  static constexpr bool measures() { return false; }
  void measure(int64_t, const float*, const float*, int64_t, int64_t) {}
  RowLoss conclude(int64_t i);
  // The logits again, which become the loss's gradient in them.
  void differentiate(int64_t i, float* logits, const float* no_teacher, int64_t first, int64_t count);

 private:
  struct Row {
    int64_t next = 0;      // first entry whose id lies in this block or a later one
    float max = -FLT_MAX;  // of the tail's logits
    double sum = 0;        // of exp((logit - max) / T) over the tail
    double sum_plain = 0;  // the same with T = 1, where that is another
    float top = -FLT_MAX;  // the largest logit
    int64_t top_id = 0;    //   and its token
    float label_logit = 0;
    float log_z = 0;        // log-sum-exp of logits / T over the vocabulary
    float log_z_plain = 0;  // of the logits
    float tail_scale = 0;   // gradient of a tail token: tail_scale exp(logit / T - log_z)
    float plain_scale = 0;  //   + plain_scale exp(logit - log_z_plain); taken off the label's
  };

  const HeadLossProblem& problem_;
  const int64_t* offsets_;
  const float* uncovered_;
  std::vector<int64_t> ids_;  // of every target in rising order
  std::vector<float> weights_;
  std::vector<float> values_;  // the ids' logits, after conclude() their gradients
  std::vector<Row> rows_;
};

}  // namespace distill::kernels
