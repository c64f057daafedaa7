#include "data/weight_source.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "core/digest.h"
#include "core/error.h"

namespace distill::data {

uint64_t checked_bytes(std::span<const int64_t> shape, uint64_t item_bytes) {
  uint64_t bytes = item_bytes, reach = item_bytes;
  for (const int64_t size : shape) {
    const auto factor = static_cast<uint64_t>(std::max<int64_t>(size, 1));
    core::check(!__builtin_mul_overflow(reach, factor, &reach) && reach <= INT64_MAX, "its shape overflows");
    bytes *= static_cast<uint64_t>(size);
  }
  return bytes;
}

const TensorInfo* WeightSource::find(std::string_view name) const {
  const auto& all = tensors();
  const auto it = std::ranges::lower_bound(all, name, {}, &TensorInfo::name);
  return it != all.end() && it->name == name ? &*it : nullptr;
}

std::string WeightSource::fingerprint_tensors(
    const std::function<std::span<const std::byte>(const TensorInfo&)>& bytes_of) const {
  uint64_t total = 0;
  for (const TensorInfo& tensor : tensors()) total += tensor.bytes;
  core::Sha256 digest;
  for (const TensorInfo& tensor : tensors()) {
    digest.update(fmt::format("{}:{} {} [{}] {}\n", tensor.name.size(), tensor.name, tensor.dtype,
                              fmt::join(tensor.shape, ","), tensor.bytes));
    std::span<const std::byte> bytes = bytes_of(tensor);
    if (total > kReadWhole && bytes.size() > kSample) bytes = bytes.subspan((bytes.size() - kSample) / 2, kSample);
    digest.update(bytes);
  }
  return digest.hex();
}

}  // namespace distill::data
