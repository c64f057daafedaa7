#include "core/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <memory>

namespace distill::core::log {

void initialise(const std::string& level) {
  auto logger = std::make_shared<spdlog::logger>("distill", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern("%^%n: %v%$");
  logger->set_level(spdlog::level::from_str(level));
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace distill::core::log
