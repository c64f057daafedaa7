#include "distill/load_model.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text_file.h"
#include "data/model_files.h"
#include "data/safetensors_writer.h"
#include "student/dense_config.h"
#include "student/dense_model.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

using nlohmann::json;
using testing::HasSubstr;

// A Hugging Face directory of a tiny model, which each test damages.
class LoadModel : public testing::Test {
 protected:
  LoadModel() {
    config_ = {{"model_type", "qwen2"},    {"vocab_size", 20},
               {"hidden_size", 16},        {"intermediate_size", 24},
               {"num_hidden_layers", 2},   {"num_attention_heads", 4},
               {"num_key_value_heads", 2}, {"max_position_embeddings", 64}};
    for (const auto& [name, tensor] :
         student::make_dense_model(config_, {.compute = at::kFloat, .trainable = true}, 5)->parameters()) {
      tensors_.emplace_back(name, tensor.detach());
    }
    write_config();
    write_weights();
  }

  void write_config() { std::ofstream(folder_.path() / "config.json") << config_.dump(); }
  void write_weights() { data::write_safetensors(weights_path(), tensors_); }
  std::filesystem::path weights_path() const { return folder_.path() / "model.safetensors"; }
  at::Tensor& tensor(const std::string& name) {
    return std::ranges::find(tensors_, name, [](const auto& named) { return named.first; })->second;
  }

  std::string error() const {
    try {
      load_model(data::ModelFiles::open(folder_.path()), {});
      return {};
    } catch (const core::Error& error) {
      return error.what();
    }
  }

  TemporaryFolder folder_;
  json config_;
  data::NamedTensors tensors_;
};

TEST_F(LoadModel, LoadsWhatIsWhole) {
  EXPECT_EQ(error(), "");
}

TEST_F(LoadModel, NamesAMissingFile) {
  std::filesystem::remove(weights_path());
  EXPECT_THAT(error(), HasSubstr("model.safetensors"));
  std::filesystem::remove(folder_.path() / "config.json");
  EXPECT_THAT(error(), HasSubstr("config.json"));
}

TEST_F(LoadModel, NamesATruncatedWeightFile) {
  const auto size = std::filesystem::file_size(weights_path());
  for (const auto kept : {size - 1, size / 2, uintmax_t{9}, uintmax_t{0}}) {
    write_weights();
    std::filesystem::resize_file(weights_path(), kept);
    EXPECT_THAT(error(), HasSubstr("model.safetensors")) << kept;
  }
}

TEST_F(LoadModel, NamesADamagedConfig) {
  std::ofstream(folder_.path() / "config.json") << "{\"model_type\": \"llama\",";
  EXPECT_THAT(error(), HasSubstr("config.json"));
  config_["num_attention_heads"] = 0;
  write_config();
  EXPECT_THAT(error(), HasSubstr("config.json: num_attention_heads: 0 is not between 1 and"));
}

TEST_F(LoadModel, NamesAModelTypeItDoesNotKnow) {
  config_["model_type"] = "gpt2";
  write_config();
  EXPECT_THAT(error(), HasSubstr("config.json: model_type: \"gpt2\" is not"));
}

TEST_F(LoadModel, NamesTheTensorThatDoesNotFitTheConfig) {
  config_["intermediate_size"] = 25;
  write_config();
  EXPECT_THAT(error(),
              HasSubstr("model.safetensors: tensor 'model.layers.0.mlp.gate_proj.weight' has the shape [24, 16]"));
}

TEST_F(LoadModel, NamesTheTensorWithNaN) {
  tensor("model.layers.1.mlp.down_proj.weight")[3][4] = std::nan("");
  write_weights();
  EXPECT_THAT(error(),
              HasSubstr("model.safetensors: tensor 'model.layers.1.mlp.down_proj.weight' has entries that are"));
}

TEST_F(LoadModel, NamesTheTensorOfAnotherType) {
  at::Tensor& weight = tensor("model.norm.weight");
  weight = weight.to(at::kInt);
  std::ranges::stable_partition(tensors_, [](const auto& named) { return named.second.scalar_type() != at::kInt; });
  write_weights();
  EXPECT_THAT(error(), HasSubstr("model.safetensors: tensor 'model.norm.weight' is stored as I32"));
}

}  // namespace
}  // namespace distill
