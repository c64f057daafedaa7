// How many threads operators use, and how these wait for each other.
#pragma once

namespace distill::kernels {

// Sets the thread count of LibTorch and of our operators; 0 means every core this process may use (cgroup-aware). Call
// it from one thread.
void set_num_threads(int threads);

// OpenMP's threads spin at the end of every parallel loop until the others arrive: with libgomp's default for
// milliseconds, in which, where something else needs the CPUs too, they keep the very thread they wait for from
// running, and generation becomes tens of times slower. Sleeping at once costs half the speed on an idle machine. The
// middle way, GOMP_SPINCOUNT, is read only when the program starts: unless the user has set it or OMP_WAIT_POLICY, this
// sets it and starts the program anew, which takes a tenth of a second. Call it before anything is done that may not be
// done twice; returns where there is nothing to do or it cannot.
void restart_with_short_spins(char** argv);

}  // namespace distill::kernels
