#include "data/model_files.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <numbers>

#include "core/error.h"
#include "data/gguf_rope_scaling.h"
#include "data/safetensors_writer.h"
#include "tests/data/expect_error.h"
#include "tests/data/gguf_builder.h"
#include "tests/data/small_tokenizer.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using gguf::TensorType;
using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string floats(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.to(at::kFloat).contiguous();
  return {static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()};
}

class ModelFilesTest : public testing::Test {
 protected:
  void write(const std::string& name, const std::string& contents) {
    std::filesystem::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name, std::ios::binary) << contents;
  }
  // Each in a file of its own: models read earlier may still be mapped.
  ModelFiles open(const GgufBuilder& builder) {
    const std::string name = fmt::format("{}/model.gguf", opened_++);
    write(name, builder.build());
    return ModelFiles::open(root_ / name);
  }
  std::string open_error(const std::string& name) {
    return error_of([&] { ModelFiles::open(root_ / name); });
  }

  TemporaryFolder folder_;
  std::filesystem::path root_ = folder_.path();
  int opened_ = 0;
};

// The metadata of a model with 2 layers, hidden size 16, 4 heads of 4, 2 of them for keys and values.
GgufBuilder tiny_metadata(const std::string& architecture) {
  GgufBuilder builder;
  const auto key = [&](const char* name) { return architecture + "." + name; };
  builder.text("general.architecture", architecture);
  builder.u32(key("block_count"), 2).u32(key("embedding_length"), 16).u32(key("feed_forward_length"), 24);
  builder.u32(key("context_length"), 128).u32(key("attention.head_count"), 4).u32(key("attention.head_count_kv"), 2);
  builder.f32(key("attention.layer_norm_rms_epsilon"), 1e-5F).f32(key("rope.freq_base"), 100000.F);
  return builder;
}

GgufBuilder tiny_model(const std::string& architecture) {
  GgufBuilder builder = tiny_metadata(architecture);
  builder.tensor("token_embd.weight", {16, 10}, TensorType::kF32, floats(at::arange(160)));
  return builder;
}

TEST_F(ModelFilesTest, OpensAHuggingFaceDirectory) {
  write("model/config.json", R"({"model_type": "llama", "hidden_size": 8})");
  write_safetensors(root_ / "model/model.safetensors", {{"model.norm.weight", at::ones({8})}});
  const auto files = ModelFiles::open(root_ / "model");
  EXPECT_EQ(files.format(), ModelFormat::kHuggingFace);
  EXPECT_EQ(files.path(), root_ / "model");
  EXPECT_EQ(files.config()["hidden_size"], 8);
  EXPECT_EQ(files.gguf(), nullptr);
  EXPECT_TRUE(files.weights()->load("model.norm.weight").equal(at::ones({8})));
}

TEST_F(ModelFilesTest, ARunDirectoryStandsForTheCheckpointThatLatestNames) {
  write("run/step-10/config.json", R"({"step": 10})");
  write("run/step-20/config.json", R"({"step": 20})");
  write("run/latest", "step-20\n");
  const auto files = ModelFiles::open(root_ / "run");
  EXPECT_EQ(files.path(), root_ / "run/step-20");
  EXPECT_EQ(files.config()["step"], 20);
  EXPECT_EQ(ModelFiles::open(root_ / "run/step-10").config()["step"], 10);
}

TEST_F(ModelFilesTest, LatestMustNameACheckpointInTheRun) {
  write("elsewhere/config.json", "{}");
  for (const char* name : {"../elsewhere", "/tmp", "..", ".", "", "\n", "a/b"}) {
    write("run/latest", name);
    EXPECT_THAT(open_error("run"), HasSubstr("latest: it should name a checkpoint beside it")) << name;
  }
  write("run/latest", "step-30");
  EXPECT_THAT(open_error("run"), AllOf(HasSubstr("it names step-30, but there is no"), HasSubstr("config.json")));
}

TEST_F(ModelFilesTest, SaysWhatItLookedFor) {
  EXPECT_THAT(open_error("absent"), HasSubstr("absent: no such file or directory"));
  std::filesystem::create_directory(root_ / "empty");
  EXPECT_THAT(open_error("empty"), AllOf(HasSubstr("neither config.json"), HasSubstr("nor latest")));
  write("ggufs/some.gguf", "x");
  EXPECT_THAT(open_error("ggufs"), HasSubstr("did you mean"));
  write("model/model.safetensors", "x");
  EXPECT_THAT(open_error("model/model.safetensors"), HasSubstr("the directory that holds config.json"));
  write("bad/config.json", "{\"a\": ");
  EXPECT_THAT(open_error("bad"), HasSubstr("bad/config.json: "));
  write("bad/config.json", "[1]");
  EXPECT_THAT(open_error("bad"), HasSubstr("config.json: not a JSON object"));
  write("x.gguf", "GGUF");
  EXPECT_THAT(open_error("x.gguf"), HasSubstr("x.gguf: "));
  write("renamed", "GGUFmore");
  EXPECT_THAT(open_error("renamed"), HasSubstr("GGUF version"));

  write("partial/config.json", "{}");
  const auto files = ModelFiles::open(root_ / "partial");
  EXPECT_THAT(error_of([&] { files.weights(); }), HasSubstr("neither model.safetensors nor"));
  EXPECT_THAT(error_of([&] { files.tokenizer(); }), HasSubstr("partial: there is no tokenizer.json"));
  write("partial/tokenizer.model", "");
  EXPECT_THAT(error_of([&] { files.tokenizer(); }), HasSubstr("SentencePiece"));
  EXPECT_EQ(files.chat_template(), nullptr);
}

TEST_F(ModelFilesTest, TranslatesGgufMetadataToAConfig) {
  GgufBuilder builder = tiny_model("llama");
  builder.u32("llama.rope.dimension_count", 4).u32("tokenizer.ggml.bos_token_id", 1);
  builder.u32("tokenizer.ggml.eos_token_id", 2).u32("llama.vocab_size", 9);
  const auto files = open(builder);
  EXPECT_EQ(files.format(), ModelFormat::kGguf);
  const json expected = json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": false,
    "mlp_bias": false, "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24,
    "max_position_embeddings": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "vocab_size": 10, "rms_norm_eps": 1e-05, "rope_theta": 100000.0, "tie_word_embeddings": true,
    "bos_token_id": 1, "eos_token_id": 2})");
  EXPECT_EQ(files.config(), expected) << json::diff(expected, files.config());
  EXPECT_THAT(files.eos_token_ids(), ElementsAre(2));
  EXPECT_EQ(files.bos_token_id(), 1);
}

TEST_F(ModelFilesTest, TranslatesWhatQwenAddsToIt) {
  GgufBuilder builder = tiny_model("qwen3");
  builder.u32("qwen3.attention.key_length", 8).u32("qwen3.attention.value_length", 8);
  builder.u32("qwen3.attention.sliding_window", 64);
  builder.u32("tokenizer.ggml.eos_token_id", 7).u32("tokenizer.ggml.eot_token_id", 3);
  builder.u32("tokenizer.ggml.eom_token_id", 7);
  builder.tensor("output.weight", {16, 10}, TensorType::kF32, floats(at::zeros({160})));
  const auto files = open(builder);
  EXPECT_EQ(files.config()["model_type"], "qwen3");
  EXPECT_EQ(files.config()["architectures"][0], "Qwen3ForCausalLM");
  EXPECT_EQ(files.config()["head_dim"], 8);
  EXPECT_EQ(files.config()["tie_word_embeddings"], false);
  EXPECT_EQ(files.config()["sliding_window"], 64);
  EXPECT_EQ(files.config()["use_sliding_window"], true);
  EXPECT_THAT(files.eos_token_ids(), ElementsAre(7, 3));
  EXPECT_FALSE(files.bos_token_id().has_value());

  GgufBuilder qwen2 = tiny_model("qwen2");
  qwen2.tensor("blk.0.attn_q.bias", {16}, TensorType::kF32, floats(at::zeros({16})));
  EXPECT_EQ(open(qwen2).config()["attention_bias"], true);
}

TEST_F(ModelFilesTest, TranslatesRopeScaling) {
  const auto scaling = [&](GgufBuilder builder) { return open(builder).config().value("rope_scaling", json()); };
  EXPECT_EQ(scaling(tiny_model("llama")), json());
  EXPECT_EQ(scaling(tiny_model("llama").text("llama.rope.scaling.type", "none")), json());
  EXPECT_EQ(scaling(tiny_model("llama").text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4)),
            json({{"rope_type", "linear"}, {"factor", 4.0}}));
  EXPECT_EQ(scaling(tiny_model("llama").f32("llama.rope.scale_linear", 2)),
            json({{"rope_type", "linear"}, {"factor", 2.0}}));
  GgufBuilder yarn = tiny_model("qwen2");
  yarn.text("qwen2.rope.scaling.type", "yarn").f32("qwen2.rope.scaling.factor", 4);
  yarn.u32("qwen2.rope.scaling.original_context_length", 32768);
  EXPECT_EQ(scaling(yarn), json({{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}}));
  yarn.f32("qwen2.rope.scaling.attn_factor", 0.5F);
  EXPECT_NEAR(scaling(yarn)["attention_factor"].get<double>(), 0.5 * (0.1 * std::log(4.0) + 1), 1e-12);
  EXPECT_THAT(error_of([&] { scaling(tiny_model("llama").text("llama.rope.scaling.type", "longrope")); }),
              HasSubstr("model.gguf: key 'llama.rope.scaling.type': \"longrope\" is not supported"));
}

// What llama.cpp's converter writes into rope_freqs.weight.
std::vector<float> llama3_factors(int64_t head_dim, double theta, double factor, double low, double high,
                                  double context) {
  std::vector<float> factors;
  for (int64_t i = 0; i < head_dim; i += 2) {
    const double wavelength =
        2 * std::numbers::pi * std::pow(theta, static_cast<double>(i) / static_cast<double>(head_dim));
    if (wavelength < context / high) {
      factors.push_back(1);
    } else if (wavelength > context / low) {
      factors.push_back(static_cast<float>(factor));
    } else {
      const double smooth = (context / wavelength - low) / (high - low);
      factors.push_back(static_cast<float>(1 / ((1 - smooth) / factor + smooth)));
    }
  }
  return factors;
}

json llama3(double factor, double high, int64_t context) {
  return {{"rope_type", "llama3"},
          {"factor", factor},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", high},
          {"original_max_position_embeddings", context}};
}

TEST(Llama3RopeScaling, FindsTheParametersBehindTheFactors) {
  EXPECT_EQ(llama3_rope_scaling(llama3_factors(128, 500000, 8, 1, 4, 8192), 500000), llama3(8, 4, 8192));
  EXPECT_EQ(llama3_rope_scaling(llama3_factors(64, 500000, 32, 1, 4, 8192), 500000), llama3(32, 4, 8192));
  EXPECT_EQ(llama3_rope_scaling(llama3_factors(128, 10000, 2, 1, 16, 2048), 10000), llama3(2, 16, 2048));
  // Only the ratios of the three matter.
  EXPECT_EQ(llama3_rope_scaling(llama3_factors(128, 500000, 8, 2, 8, 16384), 500000), llama3(8, 4, 8192));
  // One or no frequency between the plateaus.
  EXPECT_EQ(llama3_rope_scaling(llama3_factors(8, 500000, 8, 1, 4, 8192), 500000), llama3(8, 4, 8192));
  EXPECT_EQ(llama3_rope_scaling(std::vector<float>(64, 1.F), 500000), json());
}

TEST(Llama3RopeScaling, RefusesFactorsThatFollowNoSuchRule) {
  auto factors = llama3_factors(128, 500000, 8, 1, 4, 8192);
  factors[3] = 1.5F;
  EXPECT_THAT(error_of([&] { llama3_rope_scaling(factors, 500000); }), HasSubstr("do not follow Llama 3's rule"));
  factors[3] = NAN;
  EXPECT_THAT(error_of([&] { llama3_rope_scaling(factors, 500000); }), HasSubstr("not a positive number"));
  EXPECT_NE(error_of([&] { llama3_rope_scaling(std::vector<float>{1, 2, 3, 5}, 10000); }), "");
}

TEST_F(ModelFilesTest, RecoversLlama3ScalingFromItsFactors) {
  GgufBuilder builder = tiny_metadata("llama");
  builder.u32("llama.attention.key_length", 64).u32("llama.attention.value_length", 64);
  builder.tensor("token_embd.weight", {16, 10}, TensorType::kF32, floats(at::arange(160)));
  const auto factors = llama3_factors(64, 100000, 8, 1, 4, 8192);
  builder.tensor("rope_freqs.weight", {32}, TensorType::kF32, floats(at::tensor(factors)));
  const auto files = open(builder);
  EXPECT_EQ(files.config()["rope_scaling"], llama3(8, 4, 8192));
  EXPECT_EQ(files.weights()->tensors().size(), 1u);  // the factors are no weight

  GgufBuilder wrong = tiny_model("llama");
  wrong.tensor("rope_freqs.weight", {32}, TensorType::kF32, floats(at::tensor(factors)));
  EXPECT_THAT(error_of([&] { open(wrong); }), HasSubstr("'rope_freqs.weight': it has 32 factors for 2 frequencies"));
}

// [heads * head_dim, ...] as llama.cpp's converter stores it: the two halves of every head interleaved.
at::Tensor interleave(const at::Tensor& rows, int64_t heads) {
  return rows.reshape({heads, 2, rows.size(0) / heads / 2, -1}).transpose(1, 2).reshape(rows.sizes());
}

TEST_F(ModelFilesTest, GivesWeightsTheirNamesAndLayoutOfHuggingFace) {
  const at::Tensor q = at::randn({16, 16});
  const at::Tensor k = at::randn({8, 16});
  const at::Tensor v = at::randn({8, 16});
  const at::Tensor bias = at::randn({16});
  const auto add = [&](GgufBuilder builder, auto&& layout) {
    builder.tensor("blk.1.attn_q.weight", {16, 16}, TensorType::kF32, floats(layout(q, 4)));
    builder.tensor("blk.1.attn_q.bias", {16}, TensorType::kF32, floats(layout(bias, 4)));
    builder.tensor("blk.1.attn_k.weight", {16, 8}, TensorType::kF32, floats(layout(k, 2)));
    builder.tensor("blk.1.attn_v.weight", {16, 8}, TensorType::kF32, floats(v));
    return builder;
  };
  const auto as_is = [](const at::Tensor& rows, int64_t) { return rows; };
  const auto llama = open(add(tiny_model("llama"), interleave)).weights();
  const auto qwen = open(add(tiny_model("qwen2"), as_is)).weights();
  for (const auto& weights : {llama, qwen}) {
    EXPECT_TRUE(weights->load("model.layers.1.self_attn.q_proj.weight").equal(q));
    EXPECT_TRUE(weights->load("model.layers.1.self_attn.q_proj.bias").equal(bias));
    EXPECT_TRUE(weights->load("model.layers.1.self_attn.k_proj.weight").equal(k));
    EXPECT_TRUE(weights->load("model.layers.1.self_attn.v_proj.weight").equal(v));
    EXPECT_THAT(weights->find("model.embed_tokens.weight")->shape, ElementsAre(10, 16));
    EXPECT_EQ(weights->find("token_embd.weight"), nullptr);
    EXPECT_THAT(error_of([&] { weights->load("lm_head.weight"); }), HasSubstr("no tensor 'lm_head.weight'"));
  }
  EXPECT_FALSE(interleave(q, 4).equal(q));
  EXPECT_NE(llama->fingerprint(), qwen->fingerprint());
}

TEST_F(ModelFilesTest, EveryTensorOfADenseDecoderHasAName) {
  GgufBuilder builder = tiny_model("qwen3");
  for (const char* name : {"output.weight", "output_norm.weight", "blk.0.attn_norm.weight", "blk.0.attn_output.weight",
                           "blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight", "blk.0.ffn_norm.weight",
                           "blk.11.ffn_gate.weight", "blk.11.ffn_up.weight", "blk.11.ffn_down.weight"}) {
    builder.tensor(name, {1}, TensorType::kF32, floats(at::zeros({1})));
  }
  std::vector<std::string> names;
  const auto weights = open(builder).weights();
  for (const auto& tensor : weights->tensors()) names.push_back(tensor.name);
  EXPECT_THAT(names,
              ElementsAre("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
                          "model.layers.0.post_attention_layernorm.weight", "model.layers.0.self_attn.k_norm.weight",
                          "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.q_norm.weight",
                          "model.layers.11.mlp.down_proj.weight", "model.layers.11.mlp.gate_proj.weight",
                          "model.layers.11.mlp.up_proj.weight", "model.norm.weight"));
  for (const char* name : {"blk.0.ssm_in.weight", "blk.x.attn_q.weight", "blk.0attn_q.weight", "blk..attn_q.weight",
                           "blk.0", "weight", "blk.0.attn_q.scale", "blk.0.weight"}) {
    GgufBuilder other = tiny_model("llama");
    other.tensor(name, {1}, TensorType::kF32, floats(at::zeros({1})));
    EXPECT_THAT(error_of([&] { open(other).weights(); }), HasSubstr("has no place in a llama model")) << name;
  }
}

TEST_F(ModelFilesTest, RefusesGgufModelsItCannotRun) {
  GgufBuilder gemma = GgufBuilder{}.text("general.architecture", "gemma3");
  EXPECT_EQ(open(gemma).config()["model_type"], "gemma3");
  EXPECT_THAT(error_of([&] { open(gemma).weights(); }), HasSubstr("architecture gemma3 are not supported (llama,"));
  GgufBuilder mixtral = tiny_model("llama").u32("llama.expert_count", 8);
  EXPECT_EQ(open(mixtral).config()["model_type"], "mixtral");
  EXPECT_THAT(error_of([&] { open(mixtral).weights(); }), HasSubstr("mixtral"));
  const GgufBuilder piece = tiny_model("llama").value("split.count", gguf::ValueType::kUint16, raw<uint16_t>(3));
  EXPECT_THAT(error_of([&] { open(piece); }), HasSubstr("one of 3 pieces"));
  EXPECT_THAT(error_of([&] { open(GgufBuilder{}); }), HasSubstr("key 'general.architecture'"));
}

TEST_F(ModelFilesTest, RefusesSizesThatMakeNoSense) {
  const auto error = [&](const char* key, uint32_t value) {
    return error_of([&] { open(tiny_model("qwen3").u32(key, value)); });
  };
  EXPECT_THAT(error("qwen3.attention.key_length", 0), HasSubstr("key 'qwen3.attention.key_length': 0 makes no sense"));
  EXPECT_THAT(error("qwen3.attention.key_length", 1u << 31), HasSubstr("makes no sense"));
  EXPECT_THAT(error("qwen3.attention.value_length", 3), HasSubstr("values of size 3 beside keys of size 4"));
  EXPECT_THAT(error("qwen3.rope.dimension_count", 6), HasSubstr("6 exceeds the head's size 4"));
  EXPECT_THAT(error("tokenizer.ggml.eos_token_id", 0xFFFFFFFF), HasSubstr("is not a token"));
  EXPECT_EQ(open(tiny_model("qwen3").u32("qwen3.rope.dimension_count", 2)).config()["partial_rotary_factor"], 0.5);

  GgufBuilder incomplete = GgufBuilder{}.text("general.architecture", "llama").u32("llama.block_count", 2);
  EXPECT_THAT(error_of([&] { open(incomplete); }),
              HasSubstr("key 'llama.embedding_length': the file does not have it"));
  EXPECT_THAT(error_of([&] { open(tiny_metadata("llama")); }), HasSubstr("no tensor 'token_embd.weight'"));
  GgufBuilder nan = GgufBuilder{}.text("general.architecture", "x").f32("x.rope.freq_base", NAN);
  EXPECT_THAT(error_of([&] { open(nan); }), HasSubstr("key 'x.rope.freq_base': nan makes no sense"));
  GgufBuilder heads = tiny_model("llama");
  heads.tensor("blk.0.attn_q.weight", {16, 15}, TensorType::kF32, floats(at::zeros({240})));
  EXPECT_THAT(error_of([&] { open(heads).weights()->load("model.layers.0.self_attn.q_proj.weight"); }),
              HasSubstr("tensor 'blk.0.attn_q.weight': its 15 rows do not divide into 4 heads"));
}

TEST_F(ModelFilesTest, FindsEndTokensInGenerationConfigThenConfig) {
  const auto open_model = [&] { return ModelFiles::open(root_ / "m"); };
  write("m/config.json", R"({"eos_token_id": 5, "bos_token_id": null})");
  EXPECT_THAT(open_model().eos_token_ids(), ElementsAre(5));
  EXPECT_FALSE(open_model().bos_token_id().has_value());
  write("m/generation_config.json", R"({"eos_token_id": [7, 9], "bos_token_id": 1})");
  EXPECT_THAT(open_model().eos_token_ids(), ElementsAre(7, 9));
  EXPECT_EQ(open_model().bos_token_id(), 1);
  write("m/generation_config.json", R"({"eos_token_id": null})");
  EXPECT_THAT(open_model().eos_token_ids(), ElementsAre(5));
  for (const char* bad : {"-1", "\"</s>\"", "[1, 2.5]", "4294967296", "{}"}) {
    write("m/generation_config.json", fmt::format(R"({{"eos_token_id": {}}})", bad));
    EXPECT_THAT(error_of([&] { open_model().eos_token_ids(); }),
                AllOf(HasSubstr("generation_config.json: eos_token_id: "), HasSubstr("is not a token id")))
        << bad;
  }
  write("m/generation_config.json", "{");
  EXPECT_THAT(error_of([&] { open_model().eos_token_ids(); }), HasSubstr("generation_config.json: "));
  write("m/generation_config.json", "{}");
  write("m/config.json", "{}");
  EXPECT_THAT(open_model().eos_token_ids(), IsEmpty());
}

constexpr const char* kTurns =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

// The same with a system message where there is none.
std::string turns_with_system(const std::string& message) {
  return "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
         "{{ '<|im_start|>system\n" +
         message +
         "<|im_end|>\n' }}{% endif %}"
         "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
}

std::string render(const ModelFiles& files) {
  const std::vector<ChatMessage> messages{{"user", "hi"}};
  return files.chat_template()->render(messages, false);
}

TEST_F(ModelFilesTest, ReadsTheTokenizerAndFallsBackToItsSpecialTokens) {
  write("m/config.json", "{}");
  write("m/tokenizer.json", kSmallTokenizer);
  write("m/tokenizer_config.json", R"({"eos_token": "<|im_end|>", "bos_token": {"content": "<|im_start|>"}})");
  const auto files = ModelFiles::open(root_ / "m");
  EXPECT_THAT(files.tokenizer()->encode("ab"), ElementsAre(2));
  EXPECT_THAT(files.eos_token_ids(), ElementsAre(4));
  EXPECT_EQ(files.bos_token_id(), 3);

  write("m/tokenizer_config.json", R"({"eos_token": null})");
  write("m/special_tokens_map.json", R"({"eos_token": "<|im_start|>"})");
  EXPECT_THAT(files.eos_token_ids(), ElementsAre(3));
  EXPECT_FALSE(files.bos_token_id().has_value());
  write("m/tokenizer_config.json", R"({"eos_token": 7})");
  EXPECT_THAT(error_of([&] { files.eos_token_ids(); }),
              HasSubstr("tokenizer_config.json: \"eos_token\" is not a token"));
}

TEST_F(ModelFilesTest, FindsTheChatTemplateWhereverItIs) {
  write("m/config.json", "{}");
  const auto files = ModelFiles::open(root_ / "m");
  const auto write_config = [&](const json& chat_template) {
    write("m/tokenizer_config.json", json{{"chat_template", chat_template}}.dump());
  };
  write_config(nullptr);
  EXPECT_EQ(files.chat_template(), nullptr);
  write_config(kTurns);
  EXPECT_EQ(files.chat_template()->jinja(), kTurns);
  EXPECT_EQ(render(files), "<|im_start|>user\nhi<|im_end|>\n");
  write_config(
      {{{"name", "tool_use"}, {"template", "x"}}, {{"name", "default"}, {"template", turns_with_system("A")}}});
  EXPECT_EQ(render(files), "<|im_start|>system\nA<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n");
  write("m/chat_template.jinja", turns_with_system("B"));
  EXPECT_EQ(files.chat_template()->jinja(), turns_with_system("B"));
  EXPECT_THAT(std::string(files.chat_template("llama3")->family()), HasSubstr("llama"));
  write("m/chat_template.jinja", "{{ 'something else' }}");
  EXPECT_THAT(error_of([&] { files.chat_template(); }), AllOf(HasSubstr("/m: "), HasSubstr("--chat-template")));

  std::filesystem::remove(root_ / "m/chat_template.jinja");
  write_config({{{"name", "rag"}, {"template", "x"}}});
  EXPECT_THAT(error_of([&] { files.chat_template(); }), HasSubstr("named \"default\""));
  write_config({{{"name", "default"}}});
  EXPECT_THAT(error_of([&] { files.chat_template(); }), HasSubstr("lacks its \"name\" or its \"template\""));
  write_config(7);
  EXPECT_THAT(error_of([&] { files.chat_template(); }), HasSubstr("neither a text nor a list"));

  GgufBuilder builder = tiny_model("llama").text("tokenizer.chat_template", turns_with_system("C"));
  builder.texts("tokenizer.ggml.tokens", {"a", "<s>"}).u32("tokenizer.ggml.bos_token_id", 1);
  EXPECT_EQ(open(builder).chat_template()->jinja(), turns_with_system("C"));
  builder.u32("tokenizer.ggml.eos_token_id", 2);
  EXPECT_THAT(error_of([&] { open(builder).chat_template(); }), HasSubstr("2 is not one of 2 tokens"));
}

}  // namespace
}  // namespace distill::data
