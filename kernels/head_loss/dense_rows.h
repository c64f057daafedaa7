// Rows of logits against a teacher's logits of the whole vocabulary. What a KL divergence and its gradient need is
// known after one pass over both; the others need the normalised distributions, in a second one.
#pragma once

#include <cfloat>
#include <vector>

#include "kernels/head_loss/row_loss.h"

namespace distill::kernels {

class DenseRows {
 public:
  explicit DenseRows(const HeadLossProblem& problem);

  // Row i's logits of the tokens [first, first + count), block by block; `teacher` has 1 / T' applied already, and need
  // not be normalised. After all others come the tokens that the teacher doesn't have, with a null `teacher`.
  void take_in(int64_t i, const float* logits, const float* teacher, int64_t first, int64_t count);
  // After all blocks, where measures(): the same once more.
  bool measures() const;
  void measure(int64_t i, const float* logits, const float* teacher, int64_t first, int64_t count);
  RowLoss conclude(int64_t i);
  // The logits again, which become the loss's gradient in them.
  void differentiate(int64_t i, float* logits, const float* teacher, int64_t first, int64_t count);

  // log p = (logit * inverse - max) - log_sum, which keeps more digits than taking off a single log-sum-exp; log q
  // likewise.
  struct Normaliser {
    float inverse, max, log_sum, teacher_max, teacher_log_sum, mix;
  };

 private:
  struct Row {
    float max = -FLT_MAX;          // of logits
    float teacher_max = -FLT_MAX;  // of the teacher's
    int64_t top_id = 0, teacher_top_id = 0;
    float label_logit = 0;
    double sum = 0;          // of exp((logit - max) / T)
    double sum_plain = 0;    // the same with T = 1, where that is another
    double teacher_sum = 0;  // of e = exp(teacher - teacher_max)
    double entropy_sum = 0;  // of e teacher
    double forward_sum = 0;  // of e (teacher - logit / T)
    double reverse_sum = 0;  // of exp((logit - max) / T) (logit / T - teacher)
    double value = 0;        // D, as measured
    double slopes = 0;       // sum of the slopes, as measured
    float scale = 0, plain_scale = 0;
  };
  Normaliser normaliser(const Row& row) const;
  // `teacher`; if that is null, logits of tokens with next to no probability, which lie in `room`.
  static const float* or_absent(const float* teacher, const Row& row, int64_t count, std::vector<float>& room);

  const HeadLossProblem& problem_;
  float inverse_;  // 1 / T
  std::vector<Row> rows_;
};

}  // namespace distill::kernels
