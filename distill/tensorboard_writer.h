// Scalars in TensorBoard's event files: TFRecord frames around protobuf messages, both encoded by hand.
//
//   record   u64 length | u32 masked CRC32C of the length | data | u32 masked CRC32C of the data    (little endian)
//   mask(c)  ((c >> 15) | (c << 17)) + 0xa282ead8                                (tensorflow/core/lib/hash/crc32c.h)
//   data     Event { 1: double wall_time, 2: int64 step, 3: string file_version | 5: Summary | 7: SessionLog }
//            Summary { repeated 1: Value { 1: string tag, 2: float simple_value } }, SessionLog { 1: START = 1 }
//                                                                               (tensorflow/core/util/event.proto)
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file_descriptor.h"

namespace distill {

using Scalars = std::vector<std::pair<std::string, double>>;

// Not thread-safe.
class TensorboardWriter {
 public:
  // Starts a new event file in `directory`, created if need be. TensorBoard forgets what earlier files there say about
  // step `first_step` and later ones: a resumed run repeats them. Throws Error naming the file.
  TensorboardWriter(const std::filesystem::path& directory, int64_t first_step);

  // Reaches the file before the call returns.
  void write(int64_t step, std::string_view prefix, const Scalars& scalars);

  const std::filesystem::path& path() const { return path_; }

 private:
  void write_record(const std::string& data);

  std::filesystem::path path_;
  core::FileDescriptor fd_;
};

}  // namespace distill
