// How far a student's hidden states are from a teacher's, seen through a matrix W between their sizes that is
// learned along with the student and of no use afterwards:
//   mse     1/H' |W h - h'|^2   (TinyBERT, Jiao et al. 2020, arXiv 1909.10351, eq. 8)
//   cosine  1 - cos(W h, h')    (DistilBERT, Sanh et al. 2019, arXiv 1910.01108, §2, there without W)
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

namespace distill {

enum class HiddenDistance : uint8_t { kMse, kCosine };

// "mse", "cosine".
std::string_view to_string(HiddenDistance distance);
// Throws UsageError.
HiddenDistance parse_hidden_distance(std::string_view name);

class HiddenLoss {
 public:
  // W begins as Gaussian noise of variance 1 / student_size, drawn from the seed.
  HiddenLoss(HiddenDistance distance, int64_t student_size, int64_t teacher_size, uint64_t seed);

  // student [targets, student size], teacher [targets, teacher size], fp32 or bf16; [targets] fp32, differentiable in
  // `student` and W. Computed in fp32.
  at::Tensor operator()(const at::Tensor& student, const at::Tensor& teacher) const;

  // W, [teacher size, student size] fp32, a leaf.
  const at::Tensor& projector() const { return projector_; }

 private:
  HiddenDistance distance_;
  at::Tensor projector_;
};

}  // namespace distill
