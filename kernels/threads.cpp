#include "kernels/threads.h"

#include <ATen/Parallel.h>

#include "core/cpu_count.h"

namespace distill::kernels {

void set_num_threads(int threads) {
  at::set_num_threads(threads > 0 ? threads : core::available_cpus());
}

}  // namespace distill::kernels
