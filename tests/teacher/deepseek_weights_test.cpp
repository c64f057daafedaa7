#include "teacher/deepseek_weights.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "core/error.h"
#include "teacher/deepseek_model.h"
#include "tests/teacher/tiny_deepseek.h"

namespace distill::teacher {
namespace {

using Tensors = std::map<std::string, at::Tensor>;

class DeepseekCheckpoint : public testing::Test {
 protected:
  // The message of the error that loading ends with after `damage`.
  std::string error_after(const std::function<void(Tensors&)>& damage) {
    damage(tensors_);
    try {
      const DeepseekModel model(parse_deepseek_config(json_), std::make_shared<MemoryWeights>(tensors_),
                                {.compute = at::kFloat});
      return "";
    } catch (const core::Error& error) {
      return error.what();
    }
  }

  nlohmann::json json_ = tiny_config();
  Tensors tensors_ = random_tensors(parse_deepseek_config(json_));
};

TEST_F(DeepseekCheckpoint, LoadsWhenComplete) {
  EXPECT_EQ(error_after([](Tensors&) {}), "");
}

TEST_F(DeepseekCheckpoint, WithoutOneTensorIsRefusedByItsName) {
  for (const std::string name :
       {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.1.mlp.gate.weight",
        "model.layers.2.mlp.gate.e_score_correction_bias", "model.layers.1.mlp.experts.5.up_proj.weight",
        "model.layers.0.self_attn.kv_b_proj.weight", "model.layers.2.mlp.shared_experts.down_proj.weight"}) {
    const Tensors whole = tensors_;
    EXPECT_THAT(error_after([&](Tensors& tensors) { tensors.erase(name); }), testing::HasSubstr(name));
    tensors_ = whole;
  }
}

TEST_F(DeepseekCheckpoint, WithoutSomeExpertsCountsThem) {
  const std::string message = error_after([](Tensors& tensors) {
    for (int e = 2; e < 8; ++e) tensors.erase(expert_tensor(1, e, "down_proj.weight"));
  });
  EXPECT_THAT(message, testing::AllOf(testing::HasSubstr("model.layers.1.mlp.experts.2.down_proj.weight"),
                                      testing::HasSubstr("and 1 more")));
}

TEST_F(DeepseekCheckpoint, WithFewerTensorsThanItsConfigHasExpertsIsRefusedByTheirNumbers) {
  json_["num_hidden_layers"] = 4096;
  json_["n_routed_experts"] = 16384;
  EXPECT_THAT(error_after([](Tensors&) {}),
              testing::AllOf(testing::HasSubstr(fmt::format("{} tensors", tensors_.size())),
                             testing::HasSubstr(fmt::format("{}", int64_t{4095} * 16384 * 3)),
                             testing::HasSubstr("num_hidden_layers"), testing::HasSubstr("n_routed_experts")));
}

TEST_F(DeepseekCheckpoint, WithATensorThatHasNoPlaceIsRefused) {
  EXPECT_THAT(
      error_after([](Tensors& tensors) { tensors["model.layers.1.mlp.experts.8.up_proj.weight"] = at::ones({1}); }),
      testing::HasSubstr("model.layers.1.mlp.experts.8.up_proj.weight"));
}

TEST_F(DeepseekCheckpoint, MayCarryRotaryFrequencies) {
  EXPECT_EQ(
      error_after([](Tensors& tensors) { tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::ones({4}); }),
      "");
}

TEST_F(DeepseekCheckpoint, WithAWrongShapeIsRefused) {
  EXPECT_THAT(error_after([](Tensors& tensors) {
                tensors["model.layers.1.mlp.gate.weight"] = at::ones({9, 72});
              }),
              testing::AllOf(testing::HasSubstr("model.layers.1.mlp.gate.weight"), testing::HasSubstr("[8, 72]")));
}

TEST_F(DeepseekCheckpoint, MayLeaveOutPredictionModulesAltogetherButNotInPart) {
  Tensors without = tensors_;
  std::erase_if(without, [](const auto& entry) { return entry.first.starts_with("model.layers.3."); });
  const DeepseekModel model(parse_deepseek_config(json_), std::make_shared<MemoryWeights>(without),
                            {.compute = at::kFloat});
  EXPECT_EQ(model.mtp_depth(), 0);
  for (const std::string name : {"model.layers.3.enorm.weight", "model.layers.3.eh_proj.weight",
                                 "model.layers.3.shared_head.norm.weight", "model.layers.3.mlp.gate.weight"}) {
    const Tensors whole = tensors_;
    EXPECT_THAT(error_after([&](Tensors& tensors) { tensors.erase(name); }), testing::HasSubstr(name));
    tensors_ = whole;
  }
}

TEST_F(DeepseekCheckpoint, SharesEmbeddingAndHeadWithPredictionModulesThatHaveNone) {
  EXPECT_EQ(error_after([](Tensors& tensors) {
              tensors.erase("model.layers.3.embed_tokens.weight");
              tensors.erase("model.layers.3.shared_head.head.weight");
            }),
            "");
}

TEST_F(DeepseekCheckpoint, InFp8NeedsEveryScale) {
  quantise_projections(tensors_, json_);
  const std::string name = "model.layers.1.mlp.experts.0.up_proj.weight_scale_inv";
  const Tensors whole = tensors_;
  EXPECT_EQ(error_after([](Tensors&) {}), "");
  EXPECT_THAT(error_after([&](Tensors& tensors) { tensors.erase(name); }), testing::HasSubstr(name));
  tensors_ = whole;
  EXPECT_THAT(error_after([&](Tensors& tensors) {
                tensors[name] = at::ones({2, 1});
              }),
              testing::AllOf(testing::HasSubstr(name), testing::HasSubstr("[1, 1]")));
  for (const float scale : {NAN, INFINITY, -1.0f, 0.0f}) {
    tensors_ = whole;
    EXPECT_THAT(error_after([&](Tensors& tensors) {
                  tensors[name] = at::full({1, 1}, scale);
                }),
                testing::HasSubstr(name));
  }
}

TEST_F(DeepseekCheckpoint, InFp8WithoutAConfigThatSaysSoIsRefused) {
  quantise_projections(tensors_, json_);
  json_.erase("quantization_config");
  EXPECT_THAT(error_after([](Tensors&) {}), testing::HasSubstr("quantization_config"));
}

TEST_F(DeepseekCheckpoint, WithNormsThatAreNotFiniteIsRefused) {
  EXPECT_THAT(error_after([](Tensors& tensors) { tensors["model.norm.weight"][3] = NAN; }),
              testing::HasSubstr("model.norm.weight"));
}

TEST_F(DeepseekCheckpoint, WithARouterThatIsNotFiniteIsRefused) {
  const Tensors whole = tensors_;
  for (const float value : {NAN, INFINITY, -INFINITY}) {
    tensors_ = whole;
    EXPECT_THAT(error_after([&](Tensors& tensors) {
                  const at::Tensor damaged = tensors["model.layers.2.mlp.gate.weight"].clone();
                  damaged[3][5] = value;
                  tensors["model.layers.2.mlp.gate.weight"] = damaged;
                }),
                testing::HasSubstr("model.layers.2.mlp.gate.weight"))
        << value;
  }
}

TEST_F(DeepseekCheckpoint, CannotBeTrained) {
  EXPECT_THROW(DeepseekModel(parse_deepseek_config(json_), std::make_shared<MemoryWeights>(tensors_),
                             {.compute = at::kFloat, .trainable = true}),
               core::Error);
}

}  // namespace
}  // namespace distill::teacher
