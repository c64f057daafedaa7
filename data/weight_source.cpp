#include "data/weight_source.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "core/digest.h"

namespace distill::data {

const TensorInfo* WeightSource::find(std::string_view name) const {
  const auto& all = tensors();
  const auto it = std::ranges::lower_bound(all, name, {}, &TensorInfo::name);
  return it != all.end() && it->name == name ? &*it : nullptr;
}

std::string WeightSource::fingerprint_tensors(
    const std::function<std::span<const std::byte>(const TensorInfo&)>& bytes_of) const {
  core::Sha256 digest;
  for (const TensorInfo& tensor : tensors()) {
    digest.update(fmt::format("{}:{} {} [{}] {}\n", tensor.name.size(), tensor.name, tensor.dtype,
                              fmt::join(tensor.shape, ","), tensor.bytes));
    digest.update(bytes_of(tensor));
  }
  return digest.hex();
}

}  // namespace distill::data
