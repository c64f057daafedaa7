#include "distill/metrics_log.h"

#include <fcntl.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/text_file.h"

namespace distill {
namespace {

// Rewrites the file without the lines of steps after `last_step`.
void drop_later_lines(const std::filesystem::path& path, int64_t last_step) {
  if (!std::filesystem::exists(path)) return;
  std::istringstream lines(core::read_file(path));
  std::string kept;
  for (std::string line; std::getline(lines, line);) {
    const auto value = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!value.is_object()) continue;
    const auto step = value.find("step");
    if (step != value.end() && step->is_number_integer() && *step <= last_step) kept += line + "\n";
  }
  core::write_file_atomically(path, kept);
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& directory, int64_t last_step)
    : path_(directory / "metrics.jsonl"), tensorboard_(directory / "tensorboard", last_step + 1) {
  drop_later_lines(path_, last_step);
  fd_ = core::FileDescriptor(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!fd_) core::fail_errno("open", path_);
}

void MetricsLog::write(int64_t step, std::string_view kind, const Scalars& scalars) {
  nlohmann::ordered_json line{{"step", step}, {"kind", kind}};
  for (const auto& [name, value] : scalars) line[name] = value;
  const std::string text = line.dump() + "\n";
  core::write_all(fd_.get(), text.data(), text.size(), path_);
  tensorboard_.write(step, kind, scalars);
}

}  // namespace distill
