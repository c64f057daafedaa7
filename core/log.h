// Log lines for people, on standard error; standard output belongs to a command's results.
#pragma once

#include <spdlog/spdlog.h>

namespace distill::core::log {

using spdlog::debug;
using spdlog::error;
using spdlog::info;
using spdlog::warn;

// Sends everything to standard error as "distill: <message>", with colour on a terminal. Call once, in main().
// `level` is one of spdlog's names: debug, info, warning, error.
void initialise(const std::string& level);

}  // namespace distill::core::log
