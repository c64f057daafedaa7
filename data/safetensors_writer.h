// Writes safetensors files that `safetensors` and transformers load. A file appears under its name only when complete.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace distill::core {
class AtomicFile;
}

namespace distill::data {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// Writes a file whose tensors need not be in memory together: all are declared first, then written one by one.
class SafetensorsWriter {
 public:
  struct Declaration {
    std::string name;
    at::ScalarType type = at::ScalarType::Float;
    std::vector<int64_t> shape;
  };

  // Writes the header. Throws Error on a repeated name, a type the format lacks, or a wider type declared after a
  // narrower one (every tensor shall lie aligned).
  SafetensorsWriter(const std::filesystem::path& path, std::vector<Declaration> declarations,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}});
  ~SafetensorsWriter();

  // The next tensor in the order of declaration; it must have the declared type and shape, on any device.
  void write(const at::Tensor& tensor);

  // Puts the file in place. Throws Error if a declared tensor was not written.
  void commit();

 private:
  std::filesystem::path path_;
  std::vector<Declaration> declarations_;
  size_t written_ = 0;
  std::unique_ptr<core::AtomicFile> file_;
};

// All `tensors` in one file.
void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

// `directory`/model.safetensors, or, where that would exceed `max_shard_bytes`, model-00001-of-0000N.safetensors and
// their model.safetensors.index.json as transformers writes them.
void write_safetensors_shards(const std::filesystem::path& directory, const NamedTensors& tensors,
                              uint64_t max_shard_bytes);

}  // namespace distill::data
