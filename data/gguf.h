// Models in GGUF files (llama.cpp's format): metadata and named tensors, many of them block-quantised. Everything the
// header says is verified when a file is opened; after that values and tensors are views of the mapped file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/mapped_file.h"
#include "data/gguf_format.h"
#include "data/weight_source.h"

namespace distill::data {

// One value of the metadata, viewed in its file.
struct GgufValue {
  gguf::ValueType type = gguf::ValueType::kUint8;
  gguf::ValueType element_type = gguf::ValueType::kUint8;  // of an array; else the same as `type`
  uint64_t count = 1;                                      // elements of an array
  std::span<const std::byte> bytes;                        // of a string or array: what follows its length
};

class GgufFile final : public WeightSource {
 public:
  // Throws Error naming the file and the key, tensor or byte where one is at fault, unless the header is sound: every
  // string and array inside the file, no key or tensor twice, tensors aligned, inside the file and not overlapping.
  static std::shared_ptr<const GgufFile> open(const std::filesystem::path& path);

  // Shapes are in the order of Hugging Face and torch, the fastest varying dimension last.
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  // F32, F16, BF16, F64 and integers as stored; block-quantised tensors as fp32. Throws Error for a type that cannot be
  // dequantised.
  at::Tensor load(std::string_view name) const override;
  std::optional<kernels::BlockWeight> load_blocks(std::string_view name) const override;
  std::string location() const override { return file_->path().string(); }
  std::string fingerprint() const override;

  // A floating-point tensor of any type as fp32.
  at::Tensor load_fp32(std::string_view name) const;
  // The bytes of `tensor`, which must be one of tensors(), as stored.
  std::span<const std::byte> bytes(const TensorInfo& tensor) const;

  uint32_t version() const { return version_; }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }

  // Null if there is no such key.
  const GgufValue* metadata(std::string_view key) const;
  bool has(std::string_view key) const { return metadata(key) != nullptr; }

  // The value under `key`. Throw Error naming the file and the key if it is absent or of another type. Integers may be
  // stored in any width and sign that int64_t holds; number() also takes integers. Strings are valid UTF-8.
  std::string text(std::string_view key) const;
  int64_t integer(std::string_view key) const;
  double number(std::string_view key) const;
  bool boolean(std::string_view key) const;
  std::vector<std::string> texts(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;
  std::vector<double> numbers(std::string_view key) const;

 private:
  GgufFile() = default;
  void parse();
  const TensorInfo& require(std::string_view name) const;
  // Calls body(value) with the value under `key`, adding file and key to its errors.
  template <typename Body>
  auto with_value(std::string_view key, Body&& body) const;

  std::shared_ptr<const core::MappedFile> file_;
  uint32_t version_ = 0;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<TensorInfo> tensors_;
  std::vector<size_t> offsets_;  // in the file, of the tensor with the same index
};

}  // namespace distill::data
