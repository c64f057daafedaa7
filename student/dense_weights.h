// The tensors of a dense decoder by their Hugging Face names, and reading them from a checkpoint: each tensor that a
// model needs must be there, and each that is there must be needed or known to be superfluous.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/weight_source.h"
#include "student/dense_config.h"

namespace distill::student {

struct DenseWeight {
  std::string name;
  std::vector<int64_t> shape;
};

// "model.layers.<layer>.<part>".
std::string layer_weight_name(int64_t layer, std::string_view part);

inline constexpr std::string_view kEmbeddingName = "model.embed_tokens.weight";
inline constexpr std::string_view kFinalNormName = "model.norm.weight";
inline constexpr std::string_view kHeadName = "lm_head.weight";

// All tensors of the model in a fixed order, each once; the head only where it is not tied to the embedding.
std::vector<DenseWeight> dense_weights(const DenseConfig& config);

// Reads the tensors of dense_weights(config) one at a time.
class DenseWeightReader {
 public:
  // Throws Error naming file and tensor if one is missing, of another shape, or not expected in such a model.
  DenseWeightReader(const DenseConfig& config, const data::WeightSource& source);

  // The weight in blocks of integers, if the source keeps it in such (data::WeightSource::load_blocks).
  std::optional<kernels::BlockWeight> load_blocks(const DenseWeight& weight) const {
    return source_.load_blocks(weight.name);
  }

  // As stored (fp32, bf16, fp16, fp64) or dequantised. Throws Error naming file and tensor if it holds anything but
  // finite floating-point numbers.
  at::Tensor load(const DenseWeight& weight) const;

 private:
  const data::WeightSource& source_;
};

}  // namespace distill::student
