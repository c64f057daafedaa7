#include "distill/gradient_reducer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

namespace distill {
namespace {

// Bytes of gradients that travel together; small at first, so that the network has something to do early.
constexpr size_t kFirstBucketBytes = size_t{1} << 20;
constexpr size_t kBucketBytes = size_t{25} << 20;

// Instead of the Reducer's own all-reduce, which divides by the number of ranks: losses here are scaled for sums.
class SumHook final : public c10d::CppCommHookInterface<c10::intrusive_ptr<c10d::ProcessGroup>> {
 public:
  using CppCommHookInterface::CppCommHookInterface;

  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
    std::vector<at::Tensor> tensors{bucket.getBufferRef()};
    return state_->allreduce(tensors)->getFuture();
  }
};

}  // namespace

GradientReducer::GradientReducer(std::vector<at::Tensor> parameters, const nn::RankGroup& ranks)
    : parameters_(std::move(parameters)) {
  const std::vector<bool> sparse(parameters_.size(), false);
  auto [buckets, limits] =
      c10d::compute_bucket_assignment_by_size(parameters_, {kFirstBucketBytes, kBucketBytes}, sparse);
  // Gradients become ready in about the reverse order of the parameters.
  std::ranges::reverse(buckets);
  std::ranges::reverse(limits);
  std::vector<int64_t> bucket_limits(limits.begin(), limits.end());
  reducer_ = std::make_unique<c10d::Reducer>(
      parameters_, std::move(buckets), ranks.process_group(), sparse, static_cast<int64_t>(kBucketBytes),
      /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/true, std::unordered_map<size_t, std::string>{},
      static_cast<int64_t>(kFirstBucketBytes), /*skip_all_reduce_unused_params=*/false,
      /*use_python_reducer=*/false, std::move(bucket_limits));
  reducer_->register_comm_hook(std::make_unique<SumHook>(ranks.process_group()));
}

GradientReducer::~GradientReducer() = default;

void GradientReducer::backward(const at::Tensor& loss) {
  reducer_->prepare_for_forward();
  reducer_->rebuild_buckets();
  reducer_->prepare_for_backward({loss});
  loss.backward();
}

at::Tensor GradientReducer::zero() const {
  at::Tensor sum = at::zeros({}, parameters_.front().options().requires_grad(false));
  for (const auto& parameter : parameters_) sum = sum + parameter.sum() * 0;
  return sum;
}

}  // namespace distill
