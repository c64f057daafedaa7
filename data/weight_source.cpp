#include "data/weight_source.h"

#include <algorithm>

namespace distill::data {

const TensorInfo* WeightSource::find(std::string_view name) const {
  const auto& all = tensors();
  const auto it = std::ranges::lower_bound(all, name, {}, &TensorInfo::name);
  return it != all.end() && it->name == name ? &*it : nullptr;
}

}  // namespace distill::data
