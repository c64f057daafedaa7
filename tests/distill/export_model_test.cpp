#include "distill/export_model.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/text_file.h"
#include "data/safetensors.h"
#include "tests/data/expect_error.h"
#include "tests/distill/tiny_model_folder.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class ExportModel : public testing::Test {
 protected:
  TemporaryFolder folder_;
  fs::path model_ = write_model_folder(folder_.path() / "model");
  fs::path out_ = folder_.path() / "out";
};

TEST_F(ExportModel, KeepsWeightsTokenizerAndSettings) {
  const auto summary = export_model({.model = model_, .out = out_, .dtype = at::kBFloat16});
  const auto original = data::open_safetensors(model_);
  const auto exported = data::open_safetensors(out_);
  ASSERT_EQ(exported->tensors().size(), original->tensors().size());
  for (const auto& info : original->tensors()) {
    EXPECT_TRUE(exported->load(info.name).equal(original->load(info.name).to(at::kBFloat16))) << info.name;
  }
  EXPECT_EQ(core::read_file(out_ / "tokenizer.json"), core::read_file(model_ / "tokenizer.json"));
  EXPECT_EQ(core::read_file(out_ / "generation_config.json"), core::read_file(model_ / "generation_config.json"));
  const auto config = core::read_json_file(out_ / "config.json");
  EXPECT_EQ(config["torch_dtype"], "bfloat16");
  EXPECT_EQ(config["eos_token_id"], 3);
  EXPECT_THAT(core::read_file(out_ / "README.md"), HasSubstr("AutoModelForCausalLM.from_pretrained(\"out\")"));
  EXPECT_EQ(summary.bytes, 2 * summary.parameters);
}

TEST_F(ExportModel, SplitsLargeModelsIntoShards) {
  export_model({.model = model_, .out = out_, .dtype = at::kFloat, .max_shard_bytes = 20'000});
  EXPECT_TRUE(fs::exists(out_ / "model.safetensors.index.json"));
  EXPECT_EQ(data::open_safetensors(out_)->fingerprint(), data::open_safetensors(model_)->fingerprint());
}

TEST_F(ExportModel, ReplacesNothingUnlessAskedTo) {
  write_model_folder(out_, 2);
  const std::string before = core::read_file(out_ / "model.safetensors");
  EXPECT_THROW(export_model({.model = model_, .out = out_}), core::UsageError);
  EXPECT_EQ(core::read_file(out_ / "model.safetensors"), before);
  export_model({.model = model_, .out = out_, .dtype = at::kFloat, .overwrite = true});
  EXPECT_EQ(data::open_safetensors(out_)->fingerprint(), data::open_safetensors(model_)->fingerprint());
}

TEST_F(ExportModel, NeverReplacesWhatIsNoModelOrItsOwnSource) {
  fs::create_directories(out_);
  core::write_file_atomically(out_ / "thesis.txt", "years of work");
  EXPECT_THAT(error_of([&] { export_model({.model = model_, .out = out_, .overwrite = true}); }),
              HasSubstr("holds no model, so it is not replaced"));
  EXPECT_TRUE(fs::exists(out_ / "thesis.txt"));
  EXPECT_THAT(error_of([&] { export_model({.model = model_, .out = model_ / "", .overwrite = true}); }),
              HasSubstr("would replace the model it is made from"));
}

TEST_F(ExportModel, NamesTheTensorThatADtypeCannotHold) {
  data::NamedTensors tensors;
  const auto stored = data::open_safetensors(model_);
  for (const auto& info : stored->tensors()) tensors.emplace_back(info.name, stored->load(info.name).clone());
  tensors[0].second.fill_(1e6);
  data::write_safetensors(model_ / "model.safetensors", tensors);
  EXPECT_THAT(error_of([&] { export_model({.model = model_, .out = out_, .dtype = at::kHalf}); }),
              HasSubstr(tensors[0].first + "' has values that float16 cannot hold"));
  EXPECT_FALSE(fs::exists(out_));
}

TEST_F(ExportModel, NamesADamagedModel) {
  fs::resize_file(model_ / "model.safetensors", 1000);
  EXPECT_THAT(error_of([&] { export_model({.model = model_, .out = out_}); }), HasSubstr("model.safetensors"));
  EXPECT_THAT(error_of([&] { export_model({.model = folder_.path() / "none", .out = out_}); }),
              HasSubstr("there is no model"));
  EXPECT_FALSE(fs::exists(out_));
}

}  // namespace
}  // namespace distill
