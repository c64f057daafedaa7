// The tensors of a DeepSeek model by their Hugging Face names, and reading them from a checkpoint: each tensor that the
// model needs must be there, and each that is there must be needed or known to be superfluous.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "data/weight_source.h"
#include "kernels/fp8/stored_weight.h"
#include "teacher/deepseek_config.h"

namespace distill::teacher {

enum class TensorKind {
  kMatrix,          // [out, in]; may be FP8 with scales beside it
  kVector,          // [size]: norms, biases
  kOptionalMatrix,  // a multi-token-prediction module's own embedding and head; without them it uses the model's
};

struct DeepseekTensor {
  std::string name;
  std::vector<int64_t> shape;
  TensorKind kind = TensorKind::kMatrix;
};

// "model.layers.<layer>.<part>", "model.layers.<layer>.mlp.experts.<expert>.<part>".
std::string layer_tensor(int64_t layer, std::string_view part);
std::string expert_tensor(int64_t layer, int64_t expert, std::string_view part);

inline constexpr std::string_view kEmbeddingName = "model.embed_tokens.weight";
inline constexpr std::string_view kFinalNormName = "model.norm.weight";
inline constexpr std::string_view kHeadName = "lm_head.weight";

// All tensors of the model in a fixed order, each once. Layers from num_layers on are multi-token-prediction modules,
// `mtp_layers` of them.
std::vector<DeepseekTensor> deepseek_tensors(const DeepseekConfig& config, int64_t mtp_layers);

// Reads them as stored. Keeps the source and, through it, the mapped files.
class DeepseekWeights {
 public:
  // Throws Error naming file and tensor if one is missing, of another shape or type, or not expected in such a model.
  // Only headers are looked at. A checkpoint may leave the multi-token-prediction modules out altogether, not in part.
  DeepseekWeights(const DeepseekConfig& config, std::shared_ptr<const data::WeightSource> source);

  // How many multi-token-prediction modules the checkpoint has.
  int64_t mtp_layers() const { return mtp_layers_; }
  bool has(std::string_view name) const { return source_->find(name) != nullptr; }

  // bf16 and FP8 as they lie in the file, fp32 likewise where `compute` is fp32, else a copy in bf16; of fp16 a copy in
  // `compute`. Throws Error naming the tensor if its scales are not finite and positive.
  kernels::StoredWeight matrix(std::string_view name, at::ScalarType compute) const;
  // fp32.
  at::Tensor vector(std::string_view name) const;
  // Throws Error naming the tensor unless all its values are finite.
  void check_finite(std::string_view name, const at::Tensor& values) const;

 private:
  void find_mtp_layers(const DeepseekConfig& config);
  void check_number_of_experts(const DeepseekConfig& config) const;
  void check_tensor(const DeepseekConfig& config, const DeepseekTensor& tensor, std::set<std::string>& expected) const;
  [[noreturn]] void fail_missing(const DeepseekConfig& config, const std::vector<DeepseekTensor>& tensors) const;

  std::shared_ptr<const data::WeightSource> source_;
  int64_t mtp_layers_ = 0;
};

}  // namespace distill::teacher
