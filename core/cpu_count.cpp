#include "core/cpu_count.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>

namespace distill::core {
namespace {

// Smallest quota over the cgroup at `relative` and its parents below `root`, in CPUs; `unlimited` if none is set.
template <typename ReadQuota>
double tightest_quota(std::filesystem::path root, const std::string& relative, double unlimited, ReadQuota&& read) {
  double limit = unlimited;
  std::filesystem::path folder = root / std::filesystem::path(relative).relative_path();
  while (true) {
    limit = std::min(limit, read(folder, unlimited));
    if (folder == root || !folder.has_relative_path() || folder == folder.parent_path()) return limit;
    folder = folder.parent_path();
  }
}

double read_v2(const std::filesystem::path& folder, double unlimited) {
  std::ifstream file(folder / "cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return unlimited;
  return std::strtod(quota.c_str(), nullptr) / period;
}

double read_v1(const std::filesystem::path& folder, double unlimited) {
  double quota = -1;
  double period = 0;
  std::ifstream(folder / "cpu.cfs_quota_us") >> quota;
  std::ifstream(folder / "cpu.cfs_period_us") >> period;
  return quota > 0 && period > 0 ? quota / period : unlimited;
}

double cgroup_quota(double unlimited) {
  std::ifstream groups("/proc/self/cgroup");
  double limit = unlimited;
  for (std::string line; std::getline(groups, line);) {  // "hierarchy-id:controllers:path"
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      limit = std::min(limit, tightest_quota("/sys/fs/cgroup", path, unlimited, read_v2));
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      limit = std::min(limit, tightest_quota("/sys/fs/cgroup/cpu", path, unlimited, read_v1));
    }
  }
  return limit;
}

}  // namespace

int available_cpus() {
  cpu_set_t set;
  const int allowed = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::max(1, static_cast<int>(std::ceil(cgroup_quota(allowed))));
}

}  // namespace distill::core
