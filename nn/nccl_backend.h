// NCCL for the CUDA tensors of a process group, in builds for CUDA. Compiled and linked in CI where there is
// nvcc; not yet run.
#pragma once

#include <c10/util/intrusive_ptr.h>

namespace c10d {
class ProcessGroup;
class Store;
}  // namespace c10d

namespace distill::nn {

// Where there is a GPU, collectives of CUDA tensors in `group` go through NCCL; those of others stay where they are.
// The rank's GPU is the one that is current.
void add_nccl_backend(c10d::ProcessGroup& group, const c10::intrusive_ptr<c10d::Store>& store, int rank, int size);

}  // namespace distill::nn
