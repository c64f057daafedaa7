// Starts the ranks of a job on this machine, as torchrun --nproc-per-node does.
#pragma once

#include <string>
#include <vector>

namespace distill::core {

// Runs `arguments` `count` times with torchrun's variables set (rank_environment.h) and waits. SIGINT and SIGTERM go on
// to all of them. When one fails, the others have half a minute to notice and say so before they are ended. Throws
// Error if a process cannot be started or fails, naming the first rank that did.
void run_local_ranks(int count, const std::vector<std::string>& arguments);

// In such a rank: gets a SIGTERM if the process that started it ends before, however it ends. Elsewhere does nothing.
void end_with_launcher();

}  // namespace distill::core
