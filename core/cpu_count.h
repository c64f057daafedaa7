// How many CPUs this process may really use.
#pragma once

namespace distill::core {

// The smaller of the affinity mask and the cgroup's CPU quota (v1 and v2, rounded up), at least 1.
int available_cpus();

}  // namespace distill::core
