#include "teacher/deepseek_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <typeinfo>

#include "core/error.h"

namespace distill::teacher {
namespace {

using nlohmann::json;

// DeepSeek-V3's and R1's config.json as published, without what does not concern the model.
json v3() {
  return json::parse(R"({
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "num_attention_heads": 128,
    "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256, "ep_size": 1,
    "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "qk_nope_head_dim": 128, "topk_method": "noaux_tc", "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8,
    "moe_layer_freq": 1, "first_k_dense_replace": 3, "norm_topk_prob": true, "scoring_func": "sigmoid",
    "hidden_act": "silu", "max_position_embeddings": 163840, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "attention_bias": false, "tie_word_embeddings": false,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "weight_block_size": [128, 128]}})");
}

json v2_lite() {
  return json::parse(R"({
    "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
    "n_shared_experts": 2, "n_routed_experts": 64, "routed_scaling_factor": 1.0, "kv_lora_rank": 512,
    "q_lora_rank": null, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "topk_method": "greedy",
    "n_group": 1, "topk_group": 1, "num_experts_per_tok": 6, "moe_layer_freq": 1, "first_k_dense_replace": 1,
    "norm_topk_prob": false, "scoring_func": "softmax", "hidden_act": "silu", "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-06, "rope_theta": 10000, "attention_bias": false, "tie_word_embeddings": false,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                     "original_max_position_embeddings": 4096, "type": "yarn"}})");
}

TEST(DeepseekConfig, ReadsV3AsPublished) {
  const DeepseekConfig config = parse_deepseek_config(v3());
  EXPECT_EQ(config.num_layers, 61);
  EXPECT_EQ(config.mtp_layers, 1);
  EXPECT_TRUE(config.fp8);
  EXPECT_FALSE(config.has_experts(2));
  EXPECT_TRUE(config.has_experts(3));
  EXPECT_TRUE(config.moe.correction_bias);
  EXPECT_EQ(config.moe.router.scoring, kernels::RouterScoring::kSigmoid);
  EXPECT_EQ(config.moe.router.group_scoring, kernels::GroupScoring::kTwoLargest);
  EXPECT_EQ(config.moe.router.groups, 8);
  EXPECT_EQ(config.moe.router.groups_per_token, 4);
  EXPECT_TRUE(config.moe.router.normalise);
  EXPECT_EQ(config.moe.router.scaling, 2.5);
  EXPECT_TRUE(config.attention.interleaved);
  EXPECT_EQ(config.rotary.attention_factor, 1.0);
  const double mscale = 0.1 * std::log(40.0) + 1;
  EXPECT_NEAR(config.attention.softmax_scale, mscale * mscale / std::sqrt(192.0), 1e-9);
}

TEST(DeepseekConfig, ReadsV2LiteAsPublished) {
  const DeepseekConfig config = parse_deepseek_config(v2_lite());
  EXPECT_EQ(config.attention.query_rank, 0);
  EXPECT_EQ(config.moe.shared_experts, 2);
  EXPECT_FALSE(config.moe.correction_bias);
  EXPECT_EQ(config.moe.router.scoring, kernels::RouterScoring::kSoftmax);
  EXPECT_EQ(config.moe.router.groups, 1);
  EXPECT_FALSE(config.moe.router.normalise);
  EXPECT_FALSE(config.fp8);
}

TEST(DeepseekConfig, ReadsBothDialectsAlike) {
  json newer = v3();
  newer["rope_parameters"] = newer["rope_scaling"];
  newer["rope_parameters"]["rope_type"] = newer["rope_parameters"]["type"];
  newer["rope_parameters"]["rope_theta"] = newer["rope_theta"];
  newer["rope_parameters"].erase("type");
  newer.erase("rope_scaling");
  newer.erase("rope_theta");
  newer["rope_interleave"] = true;
  for (const char* key : {"topk_method", "scoring_func", "moe_layer_freq"}) newer.erase(key);
  const DeepseekConfig a = parse_deepseek_config(v3());
  const DeepseekConfig b = parse_deepseek_config(newer);
  EXPECT_EQ(a.attention.softmax_scale, b.attention.softmax_scale);
  EXPECT_EQ(a.rotary.factor, b.rotary.factor);
  EXPECT_EQ(a.rotary.kind, b.rotary.kind);
  EXPECT_EQ(a.moe.correction_bias, b.moe.correction_bias);
  EXPECT_EQ(a.moe.router.scoring, b.moe.router.scoring);
  // Where both are there, the older one counts unless it is empty.
  for (const json& other : {json(nullptr), json{{"rope_type", "default"}, {"rope_theta", 10000.0}}}) {
    json both = v3();
    both["rope_parameters"] = other;
    EXPECT_EQ(parse_deepseek_config(both).attention.softmax_scale, a.attention.softmax_scale) << other;
  }
  for (const json& other : {json(nullptr), json::object()}) {
    newer["rope_scaling"] = other;
    EXPECT_EQ(parse_deepseek_config(newer).attention.softmax_scale, a.attention.softmax_scale) << other;
  }
}

TEST(DeepseekConfig, ReadsThoseBuiltAlike) {
  json kimi = v3();  // Kimi K2: one group, more experts, fewer heads
  kimi.update({{"model_type", "kimi_k2"},
               {"n_routed_experts", 384},
               {"n_group", 1},
               {"topk_group", 1},
               {"num_attention_heads", 64},
               {"num_key_value_heads", 64},
               {"first_k_dense_replace", 1},
               {"num_nextn_predict_layers", 0}});
  EXPECT_EQ(parse_deepseek_config(kimi).moe.router.groups, 1);
  json moonlight = v3();  // no compressed query, no YaRN
  moonlight.update({{"q_lora_rank", nullptr},
                    {"rope_scaling", nullptr},
                    {"rope_theta", 50000.0},
                    {"n_group", 1},
                    {"topk_group", 1}});
  const DeepseekConfig config = parse_deepseek_config(moonlight);
  EXPECT_EQ(config.attention.query_rank, 0);
  EXPECT_NEAR(config.attention.softmax_scale, 1 / std::sqrt(192.0), 1e-9);
}

TEST(DeepseekConfig, HasExpertsInEveryNthLayerFromTheFirst) {
  json config = v3();
  config["moe_layer_freq"] = 2;
  const DeepseekConfig parsed = parse_deepseek_config(config);
  EXPECT_FALSE(parsed.has_experts(2));
  EXPECT_FALSE(parsed.has_experts(3));
  EXPECT_TRUE(parsed.has_experts(4));
  config["n_routed_experts"] = nullptr;
  EXPECT_FALSE(parse_deepseek_config(config).has_experts(4));
}

TEST(DeepseekConfig, LacksNoKeyWhoseDefaultDiffersBetweenFamilies) {
  for (const std::string key : {"routed_scaling_factor", "n_group", "topk_group", "first_k_dense_replace"}) {
    json config = v3();
    config.erase(key);
    EXPECT_THAT([&] { parse_deepseek_config(config); },
                testing::ThrowsMessage<core::Error>(testing::HasSubstr(key + ": is missing")))
        << key;
  }
  json greedy = v2_lite();  // has no groups
  greedy.erase("n_group");
  greedy["topk_group"] = nullptr;
  EXPECT_EQ(parse_deepseek_config(greedy).moe.router.groups, 1);
}

struct BadValue {
  std::string key;
  json value;
};

class DeepseekConfigKeys : public testing::TestWithParam<BadValue> {};

TEST_P(DeepseekConfigKeys, AreNamedWhenTheirValuesMakeNoSense) {
  json config = v3();
  config.merge_patch(GetParam().key == "quant_method" || GetParam().key == "weight_block_size" ||
                             GetParam().key == "fmt"
                         ? json{{"quantization_config", {{GetParam().key, GetParam().value}}}}
                         : json{{GetParam().key, GetParam().value}});
  try {
    parse_deepseek_config(config, "some/config.json");
    FAIL() << GetParam().key << " " << GetParam().value;
  } catch (const core::Error& error) {
    EXPECT_EQ(typeid(error), typeid(core::Error)) << "the file is at fault, not how the program was called";
    EXPECT_THAT(error.what(),
                testing::AllOf(testing::HasSubstr("some/config.json"), testing::HasSubstr(GetParam().key)));
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, DeepseekConfigKeys,
    testing::Values(
        BadValue{"model_type", "deepseek_v9"}, BadValue{"hidden_size", -1}, BadValue{"hidden_size", "large"},
        BadValue{"hidden_size", int64_t{1} << 60}, BadValue{"vocab_size", 0}, BadValue{"num_hidden_layers", 1 << 20},
        BadValue{"num_attention_heads", 0}, BadValue{"num_key_value_heads", 8}, BadValue{"q_lora_rank", -3},
        BadValue{"kv_lora_rank", 0}, BadValue{"qk_rope_head_dim", 63}, BadValue{"qk_nope_head_dim", 1 << 30},
        BadValue{"v_head_dim", 0}, BadValue{"n_routed_experts", -1}, BadValue{"n_routed_experts", 1 << 30},
        BadValue{"n_shared_experts", 1 << 30}, BadValue{"moe_intermediate_size", 0},
        BadValue{"first_k_dense_replace", -1}, BadValue{"moe_layer_freq", 0}, BadValue{"scoring_func", "tanh"},
        BadValue{"topk_method", "random"}, BadValue{"n_group", 7}, BadValue{"n_group", 0}, BadValue{"topk_group", 9},
        BadValue{"num_experts_per_tok", 0}, BadValue{"num_experts_per_tok", 129}, BadValue{"routed_scaling_factor", 0},
        BadValue{"rms_norm_eps", 2}, BadValue{"hidden_act", "gelu"}, BadValue{"mlp_bias", true},
        BadValue{"num_nextn_predict_layers", -1}, BadValue{"max_position_embeddings", 0},
        BadValue{"quant_method", "gptq"}, BadValue{"fmt", "e5m2"}, BadValue{"weight_block_size", json{64, 64}}));

}  // namespace
}  // namespace distill::teacher
