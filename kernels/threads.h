// How many threads the operators run on.
#pragma once

namespace distill::kernels {

// Sets the thread count of LibTorch and of our operators; 0 means every core this process may use (cgroup-aware). From
// then on threads that wait for others at the end of a loop soon sleep, so that the program stays fast where something
// else runs too. Call it from one thread.
void set_num_threads(int threads);

}  // namespace distill::kernels
