#include "distill/hidden_loss.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <array>
#include <cmath>

#include "core/names.h"

namespace distill {

namespace {

constexpr std::array<std::string_view, 2> kDistanceNames{"mse", "cosine"};

}  // namespace

std::string_view to_string(HiddenDistance distance) {
  return kDistanceNames[static_cast<size_t>(distance)];
}

HiddenDistance parse_hidden_distance(std::string_view name) {
  return core::parse_name<HiddenDistance>(kDistanceNames, name);
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
