#include "nn/nccl_backend.h"

#define USE_C10D_NCCL 1
#include <ATen/ATen.h>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

namespace distill::nn {

void add_nccl_backend(c10d::ProcessGroup& group, const c10::intrusive_ptr<c10d::Store>& store, int rank, int size) {
  if (!at::hasCUDA()) return;
  const auto shared = c10::make_intrusive<c10d::PrefixStore>("nccl", store);
  group.setBackend(at::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL,
                   c10::make_intrusive<c10d::ProcessGroupNCCL>(shared, rank, size));
}

}  // namespace distill::nn
