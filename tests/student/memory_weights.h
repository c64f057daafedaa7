// Weights that lie in memory, for tests.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "data/safetensors_format.h"
#include "data/weight_source.h"

namespace distill::student {

class MemoryWeights final : public data::WeightSource {
 public:
  explicit MemoryWeights(std::map<std::string, at::Tensor> tensors) : tensors_(std::move(tensors)) {
    for (const auto& [name, tensor] : tensors_) {
      infos_.push_back({.name = name,
                        .dtype = std::string(data::safetensors::dtype_name(tensor.scalar_type())),
                        .shape = tensor.sizes().vec(),
                        .bytes = tensor.nbytes()});
    }
  }
  const std::vector<data::TensorInfo>& tensors() const override { return infos_; }
  at::Tensor load(std::string_view name) const override { return tensors_.at(std::string(name)); }
  std::string location() const override { return "model.safetensors"; }
  std::string fingerprint() const override { return {}; }

 private:
  std::map<std::string, at::Tensor> tensors_;
  std::vector<data::TensorInfo> infos_;
};

}  // namespace distill::student
