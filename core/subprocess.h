// Runs another program and waits for it.
#pragma once

#include <string>
#include <vector>

namespace distill::core {

struct SubprocessResult {
  int exit_code = 0;  // 128 + signal number if a signal ended it
  std::string standard_output;
};

// `arguments[0]` is the program's path or a name to look up in PATH. Standard error and input stay this process's own;
// standard output is collected. Throws Error if the program cannot be started.
SubprocessResult run_subprocess(const std::vector<std::string>& arguments);

}  // namespace distill::core
