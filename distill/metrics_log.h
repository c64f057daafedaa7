// A run's figures as they come: metrics.jsonl for scripts, TensorBoard's event files for people.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "core/file_descriptor.h"
#include "distill/tensorboard_writer.h"

namespace distill {

// Not thread-safe.
class MetricsLog {
 public:
  // Appends to `directory`/metrics.jsonl and a new file in `directory`/tensorboard. What an earlier run wrote about
  // steps after `last_step` is dropped, as is a line cut short when it was killed.
  MetricsLog(const std::filesystem::path& directory, int64_t last_step);

  // One line {"step": 100, "kind": "train", "loss": 2.31, ...}; NaN and infinities as null. `kind` is "train" or
  // "validation". Reaches the files before the call returns.
  void write(int64_t step, std::string_view kind, const Scalars& scalars);

 private:
  std::filesystem::path path_;
  core::FileDescriptor fd_;
  TensorboardWriter tensorboard_;
};

}  // namespace distill
