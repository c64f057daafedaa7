#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/text_file.h"
#include "data/gguf.h"
#include "data/tokenizer.h"
#include "tests/data/gguf_builder.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

// The metadata of a GGUF file, made from a tokenizer.json as llama.cpp's converter does.
struct GgufTokenizer {
  std::string model = "gpt2";
  std::string pre = "qwen2";
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::vector<std::string> merges;
  int bos = -1;  // as add_bos_token wants it

  explicit GgufTokenizer(const std::string& name) {
    const json file = core::read_json_file(DISTILL_TEST_DATA "/tokenizers/" + name + ".json");
    tokens.resize(file["model"]["vocab"].size() + file["added_tokens"].size());
    types.assign(tokens.size(), 1);
    for (const auto& [token, id] : file["model"]["vocab"].items()) tokens[id] = token;
    for (const json& token : file["added_tokens"]) {
      tokens[token["id"]] = token["content"];
      types[token["id"]] = token["special"] ? 3 : 4;
    }
    for (const json& merge : file["model"]["merges"]) {
      merges.push_back(merge.is_string() ? merge.get<std::string>()
                                         : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    }
  }

  void write(const std::filesystem::path& path) const {
    GgufBuilder builder;
    builder.text("general.architecture", "llama").text("tokenizer.ggml.model", model);
    builder.text("tokenizer.ggml.pre", pre).texts("tokenizer.ggml.tokens", tokens);
    std::vector<std::string> elements;
    for (const int32_t type : types) elements.push_back(raw(type));
    builder.value("tokenizer.ggml.token_type", gguf::ValueType::kArray, raw_array(gguf::ValueType::kInt32, elements));
    builder.texts("tokenizer.ggml.merges", merges);
    if (bos >= 0) {
      builder.boolean("tokenizer.ggml.add_bos_token", true);
      builder.u32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(bos));
    }
    core::write_file_atomically(path, builder.build());
  }
};

class TokenizerGguf : public testing::Test {
 protected:
  std::shared_ptr<const Tokenizer> open(const GgufTokenizer& content) {
    const auto path = folder_.path() / "model.gguf";
    content.write(path);
    return Tokenizer::from_gguf(*GgufFile::open(path));
  }
  std::string error_of(const GgufTokenizer& content) {
    try {
      open(content);
    } catch (const core::Error& error) {
      return error.what();
    }
    return {};
  }
  TemporaryFolder folder_;
};

TEST_F(TokenizerGguf, EqualsTheTokenizerJsonItWasMadeFrom) {
  for (const auto& [name, pre, bos] :
       {std::tuple("qwen2", "qwen2", ""), std::tuple("llama3", "llama-bpe", "<|begin_of_text|>"),
        std::tuple("deepseek-v3", "deepseek-v3", "<｜begin▁of▁sentence｜>"), std::tuple("tekken", "tekken", "<s>")}) {
    GgufTokenizer content(name);
    content.pre = pre;
    const auto original = Tokenizer::from_json_file(std::string(DISTILL_TEST_DATA "/tokenizers/") + name + ".json");
    if (*bos != '\0') content.bos = *original->token_to_id(bos);
    const auto tokenizer = open(content);
    const json golden = core::read_json_file(DISTILL_TEST_DATA "/tokenizers/golden.json");
    for (const json& entry : golden.at(name)) {
      EXPECT_EQ(tokenizer->encode(entry.at("text").get<std::string>()), entry.at("ids").get<std::vector<int32_t>>())
          << name << ": " << entry.at("text");
    }
    core::write_file_atomically(folder_.path() / "tokenizer.json", tokenizer->to_json());
    EXPECT_EQ(Tokenizer::from_json_file(folder_.path() / "tokenizer.json")->fingerprint(), tokenizer->fingerprint());
  }
}

TEST_F(TokenizerGguf, RefusesOtherModelsAndUnknownPreTokenizers) {
  GgufTokenizer content("qwen2");
  content.model = "llama";
  EXPECT_THAT(error_of(content), AllOf(HasSubstr("model.gguf: "), HasSubstr("the tokenizer is 'llama'")));
  content.model = "gpt2";
  content.pre = "qwen9";
  EXPECT_THAT(error_of(content), HasSubstr("the pre-tokenizer 'qwen9' is not known; known are default, gpt-2"));
}

TEST_F(TokenizerGguf, NamesDamagedEntries) {
  const GgufTokenizer sound("qwen2");
  GgufTokenizer damaged = sound;
  damaged.tokens[5] = damaged.tokens[4];
  EXPECT_THAT(error_of(damaged), HasSubstr("has two ids, 4 and 5"));
  damaged = sound;
  damaged.merges[3] = "qqq a";
  EXPECT_THAT(error_of(damaged), HasSubstr("tokenizer.ggml.merges: merge 3: token 'qqq' is not in the vocabulary"));
  damaged = sound;
  damaged.merges[3] = "qa";
  EXPECT_THAT(error_of(damaged), HasSubstr("merge 3: 'qa' is not two tokens"));
  damaged = sound;
  damaged.types.pop_back();
  EXPECT_THAT(error_of(damaged), HasSubstr("tokenizer.ggml.token_type has 604 entries for 605 tokens"));
  damaged = sound;
  damaged.bos = 605;
  EXPECT_THAT(error_of(damaged), HasSubstr("tokenizer.ggml.bos_token_id is 605, which is not one of 605 tokens"));
}

}  // namespace
}  // namespace distill::data
