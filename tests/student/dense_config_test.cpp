#include "student/dense_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace distill::student {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

json config_of(const std::string& model_type, const json& changes = json::object()) {
  json config{{"model_type", model_type}, {"vocab_size", 100},
              {"hidden_size", 64},        {"intermediate_size", 96},
              {"num_hidden_layers", 4},   {"num_attention_heads", 4},
              {"num_key_value_heads", 2}, {"max_position_embeddings", 256}};
  config.update(changes);
  return config;
}

std::string error_of(const json& config) {
  try {
    parse_dense_config(config, "somewhere/config.json");
    return {};
  } catch (const core::UsageError& error) {
    return std::string("usage: ") + error.what();
  } catch (const core::Error& error) {
    return error.what();
  }
}

TEST(DenseConfig, KnowsWhichFamilyHasWhat) {
  const DenseConfig llama = parse_dense_config(config_of("llama", {{"attention_bias", true}, {"mlp_bias", true}}));
  EXPECT_TRUE(llama.qkv_bias && llama.output_bias && llama.mlp_bias && !llama.qk_norm);
  const DenseConfig qwen2 = parse_dense_config(config_of("qwen2", {{"attention_bias", false}}));
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.mlp_bias && !qwen2.qk_norm);
  const DenseConfig qwen3 = parse_dense_config(config_of("qwen3"));
  EXPECT_TRUE(!qwen3.qkv_bias && !qwen3.output_bias && qwen3.qk_norm);
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_EQ(qwen2.head_dim, 16);
  EXPECT_THAT(parse_dense_config(config_of("mistral", {{"sliding_window", 32}})).windows, ElementsAre(32, 32, 32, 32));
  EXPECT_THAT(parse_dense_config(config_of("mistral", {{"sliding_window", nullptr}})).windows, ElementsAre(0, 0, 0, 0));
}

TEST(DenseConfig, ReadsWindowsInEveryWayQwenWritesThem) {
  const json on{{"use_sliding_window", true}, {"sliding_window", 8}, {"max_window_layers", 3}};
  EXPECT_THAT(parse_dense_config(config_of("qwen2", on)).windows, ElementsAre(0, 0, 0, 8));
  json off = on;
  off["use_sliding_window"] = false;
  EXPECT_THAT(parse_dense_config(config_of("qwen2", off)).windows, ElementsAre(0, 0, 0, 0));
  json typed = on;
  typed["layer_types"] = {"sliding_attention", "full_attention", "full_attention", "sliding_attention"};
  EXPECT_THAT(parse_dense_config(config_of("qwen3", typed)).windows, ElementsAre(8, 0, 0, 8));
  EXPECT_THAT(parse_dense_config(config_of("llama", on)).windows, ElementsAre(0, 0, 0, 0));
}

TEST(DenseConfig, DerivesHeadsAsTransformersDoes) {
  json config = config_of("llama");
  config.erase("num_key_value_heads");
  EXPECT_EQ(parse_dense_config(config).num_kv_heads, 4);
  EXPECT_EQ(parse_dense_config(config_of("qwen2", {{"num_key_value_heads", nullptr}})).num_kv_heads, 4);
  EXPECT_EQ(parse_dense_config(config_of("llama", {{"head_dim", 24}})).head_dim, 24);
}

TEST(DenseConfig, CountsParametersOfSmolLm2) {
  const DenseConfig config = parse_dense_config({{"model_type", "llama"},
                                                 {"vocab_size", 49152},
                                                 {"hidden_size", 576},
                                                 {"intermediate_size", 1536},
                                                 {"num_hidden_layers", 30},
                                                 {"num_attention_heads", 9},
                                                 {"num_key_value_heads", 3},
                                                 {"tie_word_embeddings", true}});
  EXPECT_EQ(config.parameter_count(), 134515008);
}

TEST(DenseConfig, IsWrittenAsItIsRead) {
  const json scaling{{"rope_type", "linear"}, {"factor", 2.0}};
  for (const json& config :
       {config_of("llama", {{"attention_bias", true}, {"head_dim", 24}, {"rope_scaling", scaling}}),
        config_of("llama", {{"tie_word_embeddings", true}, {"rms_norm_eps", 1e-5}, {"mlp_bias", true}}),
        config_of("qwen2", {{"use_sliding_window", true}, {"sliding_window", 8}, {"max_window_layers", 2}}),
        config_of("qwen3", {{"attention_bias", true}, {"rope_theta", 1e6}}), config_of("mistral")}) {
    const DenseConfig once = parse_dense_config(config);
    const json written = dense_config_to_json(once);
    const DenseConfig twice = parse_dense_config(written);
    EXPECT_EQ(dense_config_to_json(twice), written);
    EXPECT_EQ(twice.windows, once.windows);
    EXPECT_EQ(twice.parameter_count(), once.parameter_count());
    EXPECT_EQ(std::tuple(twice.qkv_bias, twice.output_bias, twice.mlp_bias, twice.qk_norm, twice.tie_embeddings),
              std::tuple(once.qkv_bias, once.output_bias, once.mlp_bias, once.qk_norm, once.tie_embeddings));
  }
}

TEST(DenseConfig, NamesTheFileAndKeyItRefuses) {
  const auto refuses = [](const json& changes, const std::string& message) {
    EXPECT_THAT(error_of(config_of("llama", changes)), testing::StartsWith("somewhere/config.json: " + message));
  };
  refuses({{"model_type", "gpt2"}}, "model_type: \"gpt2\" is not a dense model known here");
  refuses({{"model_type", 3}}, "model_type: expected text");
  refuses({{"vocab_size", -5}}, "vocab_size: -5 is not between 1 and");
  refuses({{"vocab_size", 0}}, "vocab_size");
  refuses({{"vocab_size", 1e30}}, "vocab_size: expected an integer");
  refuses({{"vocab_size", UINT64_MAX}}, "vocab_size");
  refuses({{"hidden_size", nullptr}}, "hidden_size: is missing");
  refuses({{"hidden_size", 66}}, "num_attention_heads: 4 does not divide hidden_size, 66");
  refuses({{"num_hidden_layers", 1 << 20}}, "num_hidden_layers");
  refuses({{"num_key_value_heads", 3}}, "num_key_value_heads: 3 does not divide num_attention_heads, 4");
  refuses({{"head_dim", 7}}, "head_dim");
  refuses({{"hidden_act", "gelu"}}, "hidden_act: \"gelu\" is not supported");
  refuses({{"rms_norm_eps", -1.0}}, "rms_norm_eps");
  refuses({{"tie_word_embeddings", "yes"}}, "tie_word_embeddings: expected true or false");
  refuses({{"quantization_config", {{"quant_method", "gptq"}}}}, "quantization_config");
  refuses({{"rope_scaling", {{"type", "longrope"}}}}, "rope_scaling.type: \"longrope\" is not supported");
  refuses({{"hidden_size", 1 << 18}, {"head_dim", 64}, {"intermediate_size", 1 << 21}, {"num_hidden_layers", 4096}},
          "hidden_size: the sizes");
  EXPECT_THAT(error_of(json::array()), testing::StartsWith("somewhere/config.json: expected keys and values"));
  EXPECT_THAT(error_of(config_of("qwen2", {{"layer_types", {"full_attention"}}})),
              HasSubstr("layer_types: has 1 entries"));
  EXPECT_THAT(error_of(config_of("mistral", {{"sliding_window", 0}})), HasSubstr("sliding_window: 0 is not"));
}

}  // namespace
}  // namespace distill::student
