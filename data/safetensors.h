// Weights in safetensors files: one file, or a directory of shards with a model.safetensors.index.json. The whole
// layout is verified when a file is opened; after that a tensor is a view of the mapped file.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/mapped_file.h"
#include "data/weight_source.h"

namespace distill::data {

class SafetensorsFile final : public WeightSource {
 public:
  // Throws Error naming the file, and the tensor where one is at fault, unless the header is sound: sizes that match
  // dtype and shape, no overlaps, no gaps, nothing missing at the end and nothing left over.
  static std::shared_ptr<const SafetensorsFile> open(const std::filesystem::path& path);

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  at::Tensor load(std::string_view name) const override;
  std::string location() const override { return file_->path().string(); }
  std::string fingerprint() const override;

  // The "__metadata__" entry; empty if there is none.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // The bytes of `tensor`, which must be one of tensors(), as stored.
  std::span<const std::byte> bytes(const TensorInfo& tensor) const;

 private:
  SafetensorsFile() = default;
  void parse();

  std::shared_ptr<const core::MappedFile> file_;
  std::vector<TensorInfo> tensors_;
  std::vector<size_t> offsets_;  // in the file, of the tensor with the same index
  std::map<std::string, std::string> metadata_;
};

// `path` is a *.safetensors file, an index (*.index.json), or a directory with model.safetensors.index.json or
// model.safetensors. Shards are found beside their index; each tensor must lie in the shard the index names.
std::shared_ptr<const WeightSource> open_safetensors(const std::filesystem::path& path);

}  // namespace distill::data
