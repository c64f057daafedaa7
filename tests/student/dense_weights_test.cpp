#include "student/dense_weights.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "student/dense_model.h"
#include "tests/student/memory_weights.h"

namespace distill::student {
namespace {

using testing::HasSubstr;

DenseConfig tiny(bool tied) {
  return parse_dense_config({{"model_type", "qwen2"},
                             {"vocab_size", 20},
                             {"hidden_size", 16},
                             {"intermediate_size", 24},
                             {"num_hidden_layers", 2},
                             {"num_attention_heads", 4},
                             {"num_key_value_heads", 2},
                             {"tie_word_embeddings", tied}});
}

std::map<std::string, at::Tensor> tensors_of(const DenseConfig& config) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& weight : dense_weights(config)) tensors[weight.name] = at::rand(weight.shape);
  return tensors;
}

// The message of the error that loading ends in; empty if there is none.
std::string error_of(const DenseConfig& config, const std::map<std::string, at::Tensor>& tensors) {
  try {
    load_dense_model(config, MemoryWeights(tensors), {});
    return {};
  } catch (const core::Error& error) {
    return error.what();
  }
}

TEST(DenseWeights, ListEachTensorOnceWithAllItsParameters) {
  for (const bool tied : {true, false}) {
    const DenseConfig config = tiny(tied);
    int64_t count = 0;
    std::set<std::string> names;
    for (const auto& weight : dense_weights(config)) {
      count += c10::multiply_integers(weight.shape);
      EXPECT_TRUE(names.insert(weight.name).second) << weight.name;
    }
    EXPECT_EQ(count, config.parameter_count());
    EXPECT_EQ(names.contains("lm_head.weight"), !tied);
    EXPECT_TRUE(names.contains("model.layers.1.self_attn.q_proj.bias"));
  }
}

TEST(DenseWeights, LoadFromEveryFloatingType) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    auto tensors = tensors_of(tiny(false));
    for (auto& [name, tensor] : tensors) tensor = tensor.to(type);
    EXPECT_EQ(error_of(tiny(false), tensors), "") << type;
  }
}

TEST(DenseWeights, IgnoreWhatIsKnownToBeSuperfluous) {
  auto tensors = tensors_of(tiny(true));
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::rand({2});
  tensors["lm_head.weight"] = at::rand({20, 16});
  EXPECT_EQ(error_of(tiny(true), tensors), "");
}

TEST(DenseWeights, NameTheTensorThatIsMissing) {
  auto tensors = tensors_of(tiny(false));
  tensors.erase("model.layers.1.mlp.up_proj.weight");
  EXPECT_THAT(error_of(tiny(false), tensors),
              HasSubstr("model.safetensors: tensor 'model.layers.1.mlp.up_proj.weight' is missing"));
}

TEST(DenseWeights, NameTheTensorOfAnotherShape) {
  auto tensors = tensors_of(tiny(false));
  tensors["model.norm.weight"] = at::rand({17});
  EXPECT_THAT(error_of(tiny(false), tensors),
              HasSubstr("'model.norm.weight' has the shape [17], its config asks for [16]"));
}

TEST(DenseWeights, NameTheTensorThatHasNoPlace) {
  auto tensors = tensors_of(tiny(false));
  tensors["model.layers.0.self_attn.q_norm.weight"] = at::rand({4});
  EXPECT_THAT(error_of(tiny(false), tensors),
              HasSubstr("'model.layers.0.self_attn.q_norm.weight' has no place in a qwen2 model"));
}

TEST(DenseWeights, NameTheTensorOfAnotherType) {
  auto tensors = tensors_of(tiny(false));
  tensors["model.norm.weight"] = at::ones({16}, at::kLong);
  EXPECT_THAT(error_of(tiny(false), tensors), HasSubstr("'model.norm.weight' is stored as I64; weights must be"));
}

TEST(DenseWeights, NameTheTensorThatHoldsNaNOrInfinity) {
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      auto tensors = tensors_of(tiny(false));
      at::Tensor& damaged = tensors["model.layers.1.self_attn.k_proj.weight"];
      damaged = damaged.to(type);
      damaged[3][5] = bad;
      EXPECT_THAT(
          error_of(tiny(false), tensors),
          HasSubstr(
              "model.safetensors: tensor 'model.layers.1.self_attn.k_proj.weight' has entries that are not finite"))
          << bad << " " << type;
    }
  }
}

TEST(DenseWeights, AcceptFiniteWeightsWhoseSumOverflows) {
  auto tensors = tensors_of(tiny(false));
  tensors["model.norm.weight"] = at::full({16}, 1.7e308, at::kDouble);
  EXPECT_EQ(error_of(tiny(false), tensors), "");
}

}  // namespace
}  // namespace distill::student
