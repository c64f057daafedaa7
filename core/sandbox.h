// Runs a command that need not be trusted: without network, without writing to any file, for a limited time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace distill::core {

struct SandboxLimits {
  double seconds = 10;                            // of wall time; of processor time likewise
  uint64_t memory_bytes = uint64_t{1} << 30;      // of address space, for each process
  uint64_t temporary_bytes = uint64_t{64} << 20;  // of files in /tmp
};

struct SandboxResult {
  int exit_code = 0;  // 128 + signal number if a signal ended it
  bool timed_out = false;
};

// `command` goes to /bin/sh -c with `input` as standard input; output goes nowhere. It sees the files that this process
// sees, read-only, but an empty /tmp of its own, and starts in the same folder. It and all its children end with it, at
// the latest when its time is up. Uses Linux namespaces: throws Error naming the step that the system does not permit.
// Any thread.
SandboxResult run_in_sandbox(const std::string& command, std::string_view input, const SandboxLimits& limits = {});

}  // namespace distill::core
