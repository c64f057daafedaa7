#include "distill/hidden_loss.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "core/error.h"

namespace distill {

std::string_view to_string(HiddenDistance distance) {
  return distance == HiddenDistance::kMse ? "mse" : "cosine";
}

HiddenDistance parse_hidden_distance(std::string_view name) {
  for (const auto distance : {HiddenDistance::kMse, HiddenDistance::kCosine}) {
    if (name == to_string(distance)) return distance;
  }
  core::fail_usage("'{}' is neither mse nor cosine", name);
}

HiddenLoss::HiddenLoss(HiddenDistance distance, int64_t student_size, int64_t teacher_size, uint64_t seed)
    : distance_(distance),
      projector_((at::randn({teacher_size, student_size}, at::detail::createCPUGenerator(seed), at::kFloat) /
                  std::sqrt(static_cast<double>(student_size)))
                     .requires_grad_()) {}

at::Tensor HiddenLoss::operator()(const at::Tensor& student, const at::Tensor& teacher) const {
  TORCH_CHECK(student.dim() == 2 && teacher.dim() == 2 && student.size(0) == teacher.size(0) &&
                  student.size(1) == projector_.size(1) && teacher.size(1) == projector_.size(0),
              "hidden loss: student ", student.sizes(), " and teacher ", teacher.sizes(), " do not fit a projector ",
              projector_.sizes());
  const at::Tensor seen = at::matmul(student.to(at::kFloat), projector_.t());
  const at::Tensor theirs = teacher.to(at::kFloat);
  if (distance_ == HiddenDistance::kMse) return (seen - theirs).square().mean(-1);
  return 1 - at::cosine_similarity(seen, theirs, /*dim=*/-1, /*eps=*/1e-8);
}

}  // namespace distill
