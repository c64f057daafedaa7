// The stream that LibTorch currently works on, for the files that turn tensors into kernel arguments.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace distill::kernels::cuda {

// Makes the tensor's device current for its lifetime and gives that device's current stream; check() throws what the
// launch reported.
class CurrentStream {
 public:
  explicit CurrentStream(const at::Tensor& tensor)
      : guard_(tensor.device()), stream_(c10::cuda::getCurrentCUDAStream()) {}
  operator cudaStream_t() const { return stream_; }
  void check() const { C10_CUDA_KERNEL_LAUNCH_CHECK(); }

 private:
  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream stream_;
};

}  // namespace distill::kernels::cuda
