// Named tensors of a model, wherever they lie: one safetensors file, a sharded directory, a GGUF file.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/packed_linear/block_weight.h"

namespace distill::data {

struct TensorInfo {
  std::string name;
  std::string dtype;  // as the file names it: "BF16", "F8_E4M3", "Q4_K", ...
  std::vector<int64_t> shape;
  uint64_t bytes = 0;  // as stored
};

// Bytes of a tensor of that shape and so many bytes per item. Throws Error if they overflow, or the tensor's strides
// would: these are products of sizes in which 0 counts as 1.
uint64_t checked_bytes(std::span<const int64_t> shape, uint64_t item_bytes);

// Thread-safe after construction. Tensors returned may share the file's mapping and keep it alive.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // Sorted by name.
  virtual const std::vector<TensorInfo>& tensors() const = 0;

  // Null if there is no tensor of that name.
  const TensorInfo* find(std::string_view name) const;

  // The tensor as stored (a read-only view of the mapped file where the dtype is one of torch's), or dequantised to
  // fp32 where it is block-quantised (GGUF). Throws Error naming the file and tensor.
  virtual at::Tensor load(std::string_view name) const = 0;

  // The tensor's blocks of integers, where it is stored in such and the kernels multiply with them as they are: the
  // same values as load() gives, rounded to bf16. Nothing otherwise.
  virtual std::optional<kernels::BlockWeight> load_blocks(std::string_view) const { return std::nullopt; }

  // Which file the weights came from, for messages.
  virtual std::string location() const = 0;

  // SHA-256 (hex) over the names, dtypes, shapes and bytes of all tensors. Of weights larger than kReadWhole together
  // only the middle of each tensor is read, kSample bytes: training changes all of a tensor, and a model that is larger
  // than memory must not be read through to be named.
  virtual std::string fingerprint() const = 0;
  static constexpr uint64_t kReadWhole = uint64_t{1} << 30;
  static constexpr uint64_t kSample = 4096;

 protected:
  // What fingerprint() returns, given the stored bytes of each tensor. Independent of how tensors are spread over
  // files.
  std::string fingerprint_tensors(const std::function<std::span<const std::byte>(const TensorInfo&)>& bytes_of) const;
};

}  // namespace distill::data
