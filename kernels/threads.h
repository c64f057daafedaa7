// How many threads the operators run on.
#pragma once

namespace distill::kernels {

// Sets the thread count of LibTorch and of our operators; 0 means every core this process may use (cgroup-aware).
void set_num_threads(int threads);

}  // namespace distill::kernels
