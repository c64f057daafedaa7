#include "kernels/threads.h"

#include <ATen/Parallel.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "core/cpu_count.h"

namespace distill::kernels {

void set_num_threads(int threads) {
  at::set_num_threads(threads > 0 ? threads : core::available_cpus());
}

void restart_with_short_spins(char** argv) {
  constexpr const char* kSpins = "20000";
  if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error && ::setenv("GOMP_SPINCOUNT", kSpins, 1) == 0) ::execv(program.c_str(), argv);
}

}  // namespace distill::kernels
