#include "data/file_description.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/error.h"
#include "data/safetensors_writer.h"
#include "data/trace_writer.h"
#include "tests/data/gguf_builder.h"
#include "tests/data/sample_traces.h"
#include "tests/data/small_tokenizer.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class FileDescription : public testing::Test {
 protected:
  void write(const std::string& name, const std::string& contents) {
    std::filesystem::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name, std::ios::binary) << contents;
  }
  nlohmann::ordered_json describe(const std::string& name, const DescribeOptions& options = {}) {
    return describe_file(root_ / name, options);
  }
  std::string error_of(const std::string& name) {
    try {
      describe(name);
      return {};
    } catch (const core::Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(name));
      return error.what();
    }
  }
  void write_model(const std::string& name) {
    write(name + "/config.json", R"({"model_type": "llama", "num_hidden_layers": 3, "num_attention_heads": 4,
                                     "num_key_value_heads": 2, "hidden_size": 32, "eos_token_id": [2, 5]})");
    write_safetensors(root_ / name / "model.safetensors",
                      {{"a", at::zeros({3, 5})}, {"b", at::zeros({7}, at::kBFloat16)}, {"c", at::zeros({2})}});
  }

  TemporaryFolder folder_;
  std::filesystem::path root_ = folder_.path();
};

TEST_F(FileDescription, CountsTensorsParametersAndBytesByDtype) {
  write_model("m");
  const auto file = describe("m/model.safetensors", {.tensors = true, .fingerprint = true});
  EXPECT_EQ(file["kind"], "safetensors");
  EXPECT_EQ(file["metadata"]["format"], "pt");
  EXPECT_EQ(file["weights"]["tensors"], 3);
  EXPECT_EQ(file["weights"]["parameters"], 24);
  EXPECT_EQ(file["weights"]["bytes"], 4 * 17 + 2 * 7);
  EXPECT_EQ(file["weights"]["dtypes"]["F32"]["parameters"], 17);
  EXPECT_EQ(file["weights"]["dtypes"]["BF16"]["bytes"], 14);
  EXPECT_EQ(file["weights"]["fingerprint"].get<std::string>().size(), 64u);
  ASSERT_EQ(file["tensors"].size(), 3u);
  EXPECT_EQ(file["tensors"][0],
            nlohmann::ordered_json::parse(R"({"name": "a", "dtype": "F32", "shape": [3, 5], "bytes": 60})"));
  EXPECT_FALSE(describe("m/model.safetensors").contains("tensors"));
}

TEST_F(FileDescription, DescribesAModelDirectoryAndWhatItLacks) {
  write_model("m");
  const auto model = describe("m");
  EXPECT_EQ(model["kind"], "model");
  EXPECT_EQ(model["model_type"], "llama");
  EXPECT_EQ(model["cache_bytes_per_token"], 3 * 2 * 2 * 8 * 2);
  EXPECT_EQ(model["weights"]["parameters"], 24);
  EXPECT_TRUE(model["tokenizer"].is_null());
  EXPECT_TRUE(model["chat_template"].is_null());
  EXPECT_THAT(model["eos_token_ids"], ElementsAre(2, 5));
  EXPECT_FALSE(model.contains("problems"));

  write("config_only/config.json", R"({"num_hidden_layers": 2, "kv_lora_rank": 512, "qk_rope_head_dim": 64})");
  const auto bare = describe("config_only");
  EXPECT_TRUE(bare["model_type"].is_null());
  EXPECT_TRUE(bare["weights"].is_null());
  EXPECT_EQ(bare["cache_bytes_per_token"], 2 * (512 + 64) * 2);
  EXPECT_FALSE(bare.contains("cache_bytes_per_token_without_latents"));
}

TEST_F(FileDescription, ComparesLatentCachesWithOrdinaryOnes) {
  write("config.json", R"({"num_hidden_layers": 2, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
                           "num_attention_heads": 16, "qk_nope_head_dim": 128, "v_head_dim": 128})");
  const auto description = describe("");
  EXPECT_EQ(description["cache_bytes_per_token_fp8"], 2 * (512 + 4 * 4 + 64 * 2));
  const auto& ordinary = description["cache_bytes_per_token_without_latents"];
  EXPECT_EQ(ordinary["mha"], 2 * 16 * (128 + 64 + 128) * 2);
  EXPECT_EQ(ordinary["gqa_8"], 2 * 8 * (128 + 64 + 128) * 2);
}

TEST_F(FileDescription, TellsWhatIsDamagedInAModelBesideWhatIsNot) {
  write_model("m");
  std::filesystem::resize_file(root_ / "m/model.safetensors", 100);
  write("m/generation_config.json", "{");
  const auto model = describe("m");
  EXPECT_EQ(model["model_type"], "llama");
  ASSERT_EQ(model["problems"].size(), 2u);
  EXPECT_THAT(model["problems"][0].get<std::string>(), HasSubstr("model.safetensors"));
  EXPECT_EQ(model["weights"]["error"], model["problems"][0]);
  EXPECT_THAT(model["problems"][1].get<std::string>(), HasSubstr("generation_config.json"));
  EXPECT_EQ(model["eos_token_ids"]["error"], model["problems"][1]);
}

TEST_F(FileDescription, DescribesARunByItsNewestCheckpoint) {
  write_model("run/step-1");
  write_model("run/step-2");
  write("run/latest", "step-2");
  const auto run = describe("run");
  EXPECT_EQ(run["kind"], "run");
  EXPECT_THAT(run["checkpoints"], ElementsAre("step-1", "step-2"));
  EXPECT_EQ(run["latest"], "step-2");
  EXPECT_EQ(run["weights"]["parameters"], 24);
}

TEST_F(FileDescription, DescribesShardsThroughTheirIndex) {
  std::filesystem::create_directory(root_ / "shards");
  write_safetensors_shards(root_ / "shards", {{"a", at::zeros({100})}, {"b", at::zeros({100})}}, 500);
  EXPECT_EQ(describe("shards")["weights"]["parameters"], 200);
  EXPECT_EQ(describe("shards/model.safetensors.index.json")["weights"]["bytes"], 800);
}

TEST_F(FileDescription, DescribesGgufFilesThatAreNoModelsOfOurs) {
  GgufBuilder gemma;
  gemma.text("general.architecture", "gemma3").u32("gemma3.block_count", 26).boolean("yes", true);
  gemma.f32("scale", 0.5F).texts("words", {"a", "b"});
  gemma.tensor("blk.0.other.weight", {256}, gguf::TensorType::kIQ2_XXS, std::string(66, '\0'));
  write("gemma.gguf", gemma.build());
  const auto file = describe("gemma.gguf");
  EXPECT_EQ(file["kind"], "gguf");
  EXPECT_EQ(file["model_type"], "gemma3");
  EXPECT_EQ(file["config"]["num_hidden_layers"], 26);
  EXPECT_EQ(file["weights"]["dtypes"]["IQ2_XXS"]["bytes"], 66);
  EXPECT_EQ(file["metadata"]["yes"], true);
  EXPECT_EQ(file["metadata"]["scale"], 0.5);
  EXPECT_EQ(file["metadata"]["words"], nlohmann::ordered_json({{"array_of", "string"}, {"count", 2}}));
  EXPECT_FALSE(file.contains("problems"));

  write("nameless.gguf", GgufBuilder{}.tensor("t", {1}, gguf::TensorType::kI8, "x").build());
  const auto nameless = describe("nameless.gguf");
  EXPECT_EQ(nameless["weights"]["tensors"], 1);
  EXPECT_THAT(nameless["problems"][0].get<std::string>(), HasSubstr("key 'general.architecture'"));
}

TEST_F(FileDescription, DescribesTracesWithTheirProvenance) {
  const auto provenance = sample_provenance();
  TraceWriter writer(root_ / "traces", provenance, {.documents_per_shard = 3});
  uint64_t completion_tokens = 0;
  for (const auto& trace : sample_traces(5, provenance)) {
    writer.append(trace);
    completion_tokens += trace.document.completion_length();
  }
  writer.finish();
  const auto traces = describe("traces");
  EXPECT_EQ(traces["kind"], "traces");
  EXPECT_EQ(traces["documents"], 5);
  EXPECT_EQ(traces["shards"], 2);
  EXPECT_EQ(traces["completion_tokens"], completion_tokens);
  EXPECT_GT(traces["bytes"], 1000);
  EXPECT_EQ(traces["provenance"]["teacher"], "teacher.gguf");
  EXPECT_EQ(describe("traces/shard-00000.h5")["documents"], 3);

  std::filesystem::resize_file(root_ / "traces/shard-00001.h5", 700);
  EXPECT_THAT(error_of("traces"), HasSubstr("shard-00001.h5"));
}

TEST_F(FileDescription, DescribesATokenizerAloneOrInItsModel) {
  write("words/tokenizer.json", kSmallTokenizer);
  const auto tokenizer = describe("words/tokenizer.json");
  EXPECT_EQ(tokenizer["kind"], "tokenizer");
  EXPECT_EQ(tokenizer["tokenizer"]["vocab_size"], 5);
  EXPECT_EQ(tokenizer["tokenizer"]["special_tokens"], 2);
  EXPECT_EQ(describe("words")["tokenizer"], tokenizer["tokenizer"]);

  write_model("m");
  write("m/tokenizer.json", kSmallTokenizer);
  write("m/chat_template.jinja", "{{ 'no family we know' }}");
  auto model = describe("m");
  EXPECT_EQ(model["tokenizer"], tokenizer["tokenizer"]);
  EXPECT_TRUE(model["chat_template"]["family"].is_null());
  EXPECT_THAT(model["chat_template"]["note"].get<std::string>(), HasSubstr("--chat-template"));
  EXPECT_FALSE(model.contains("problems"));

  std::filesystem::resize_file(root_ / "m/tokenizer.json", 300);
  model = describe("m");
  EXPECT_THAT(model["problems"][0].get<std::string>(), HasSubstr("m/tokenizer.json"));
}

TEST_F(FileDescription, RefusesWhatItDoesNotKnowOrCannotRead) {
  write("notes.txt", "hello");
  EXPECT_THAT(error_of("notes.txt"), HasSubstr("not a file that distill knows"));
  EXPECT_THAT(error_of("absent"), HasSubstr("no such file"));
  std::filesystem::create_directory(root_ / "empty");
  EXPECT_THAT(error_of("empty"), HasSubstr("nothing known in this directory"));
  write("config.json", R"({"model_type": "llama"})");
  EXPECT_THAT(error_of("config.json"), HasSubstr("inspect the directory it lies in"));
  write("other.json", R"([1])");
  EXPECT_THAT(error_of("other.json"), HasSubstr("neither a tokenizer nor an index"));
  write("broken.json", R"({"a")");
  EXPECT_THAT(error_of("broken.json"), HasSubstr("line 1, column"));
  write("broken.gguf", "GGUF\3");
  EXPECT_THAT(error_of("broken.gguf"), HasSubstr("truncated"));
  write("broken.safetensors", "x");
  EXPECT_THAT(error_of("broken.safetensors"), HasSubstr("too few"));
  write("run/latest", "gone");
  EXPECT_THAT(error_of("run"), HasSubstr("it names gone"));
}

}  // namespace
}  // namespace distill::data
