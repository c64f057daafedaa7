// Damaged and unsupported tokenizer.json files: each error names the file and the entry.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/text_file.h"
#include "data/tokenizer.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

class TokenizerJson : public testing::Test {
 protected:
  // What reading `text` as a tokenizer.json complains of, or nothing.
  std::string error_of(const std::string& text) {
    const auto path = folder_.path() / "tokenizer.json";
    core::write_file_atomically(path, text);
    try {
      Tokenizer::from_json_file(path);
    } catch (const core::Error& error) {
      return error.what();
    }
    return {};
  }

  // The same after `change` to a sound file.
  std::string error_after(const std::function<void(json&)>& change) {
    json file = json::parse(sound_);
    change(file);
    return error_of(file.dump());
  }

  TemporaryFolder folder_;
  std::string sound_ = core::read_file(DISTILL_TEST_DATA "/tokenizers/qwen2.json");
};

TEST_F(TokenizerJson, ReadsASoundFile) {
  EXPECT_EQ(error_of(sound_), "");
}

TEST_F(TokenizerJson, NamesAMissingFile) {
  EXPECT_THAT([&] { Tokenizer::from_json_file(folder_.path() / "none.json"); },
              testing::ThrowsMessage<core::Error>(HasSubstr("none.json: No such file")));
}

TEST_F(TokenizerJson, RefusesATruncatedFile) {
  for (size_t size = 0; size < sound_.size(); size += 997) {
    EXPECT_THAT(
        error_of(sound_.substr(0, size)),
        AllOf(HasSubstr("tokenizer.json"), testing::AnyOf(HasSubstr("parse error"), HasSubstr("not valid UTF-8"))));
  }
}

TEST_F(TokenizerJson, SurvivesAnyDamagedByte) {
  for (size_t at = 0; at < sound_.size(); at += 61) {
    std::string damaged = sound_;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x15);
    const std::string error = error_of(damaged);
    if (error.empty()) continue;
    EXPECT_THAT(error, HasSubstr("tokenizer.json"));
  }
}

TEST_F(TokenizerJson, RefusesWhatIsNoTokenizer) {
  EXPECT_THAT(error_of("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_of("{}"), HasSubstr("there is no \"model\""));
  EXPECT_THAT(error_after([](json& f) { f["model"]["type"] = "Unigram"; }), HasSubstr("\"Unigram\"; only BPE"));
  EXPECT_THAT(error_after([](json& f) { f["model"].erase("vocab"); }), HasSubstr("model.vocab: there is no \"vocab\""));
  EXPECT_THAT(error_after([](json& f) { f["model"]["vocab"] = 3; }), HasSubstr("model.vocab: not an object"));
  EXPECT_THAT(error_after([](json& f) { f["model"]["merges"] = json::object(); }),
              HasSubstr("model.merges: not an array"));
}

TEST_F(TokenizerJson, RefusesDamagedIds) {
  const auto with_id = [&](const json& id) { return error_after([&](json& f) { f["model"]["vocab"]["!"] = id; }); };
  EXPECT_THAT(with_id(1), AllOf(HasSubstr("tokenizer.json: model.vocab: tokens "), HasSubstr("the same id 1")));
  EXPECT_THAT(with_id(-1), HasSubstr("token '!' has the id -1"));
  EXPECT_THAT(with_id(1.5), HasSubstr("token '!' has the id 1.5"));
  EXPECT_THAT(with_id("0"), HasSubstr("token '!' has the id \"0\""));
  EXPECT_THAT(with_id(4294967296), HasSubstr("token '!' has the id 4294967296; ids go from 0 to"));
  EXPECT_THAT(with_id(UINT64_MAX), HasSubstr("token '!' has the id"));
  EXPECT_THAT(with_id(7000), HasSubstr("id 0 has no token, but the vocabulary goes up to 7000"));
  std::string twice = sound_;
  twice.replace(twice.find("\"!\":0"), 5, "\"!\":0,\"!\":0");
  EXPECT_THAT(error_of(twice), HasSubstr("duplicate key \"!\""));
}

TEST_F(TokenizerJson, RefusesDamagedMerges) {
  const auto with_merge = [&](const json& merge) {
    return error_after([&](json& f) { f["model"]["merges"][2] = merge; });
  };
  EXPECT_THAT(with_merge("qqq a"), HasSubstr("model.merges: merge 2: token 'qqq' is not in the vocabulary"));
  EXPECT_THAT(with_merge({"a", "qqq"}), HasSubstr("merge 2: token 'qqq' is not in the vocabulary"));
  EXPECT_THAT(with_merge({"q", "!"}), HasSubstr("merge 2 ('q' and '!') gives 'q!', which is not in the vocabulary"));
  EXPECT_THAT(with_merge("ab"), HasSubstr("merge 2: 'ab' is not two tokens"));
  EXPECT_THAT(with_merge("a b c"), HasSubstr("merge 2: 'a b c' is not two tokens"));
  EXPECT_THAT(with_merge({"a"}), HasSubstr("merge 2: [\"a\"] is not a pair"));
  EXPECT_THAT(with_merge(7), HasSubstr("merge 2: 7 is not a pair"));
}

TEST_F(TokenizerJson, RefusesDamagedAddedTokens) {
  const auto with = [&](const char* key, const json& value) {
    return error_after([&](json& f) { f["added_tokens"][1][key] = value; });
  };
  EXPECT_THAT(with("id", 9999), HasSubstr("has the id 9999, but the next free one is 601"));
  EXPECT_THAT(with("id", -3), HasSubstr("added_tokens: entry 1: \"id\" is -3"));
  EXPECT_THAT(with("id", uint64_t{1} << 40), HasSubstr("added_tokens: entry 1: \"id\" is 1099511627776"));
  EXPECT_THAT(with("content", "!"), HasSubstr("added token '!': it has the id 601, but 0 in the vocabulary"));
  EXPECT_THAT(with("content", ""), HasSubstr("it has no text"));
  EXPECT_THAT(with("content", 5), HasSubstr("entry 1: \"content\" is not a string"));
  EXPECT_THAT(with("lstrip", "yes"), HasSubstr("entry 1: \"lstrip\" is not true or false"));
  EXPECT_THAT(error_after([](json& f) { f["added_tokens"].push_back(f["added_tokens"][0]); }),
              HasSubstr("the added token with id 600 is there twice"));
  EXPECT_THAT(error_after([](json& f) { f["added_tokens"] = "x"; }), HasSubstr("added_tokens: not an array"));
}

TEST_F(TokenizerJson, NamesWhatIsNotSupported) {
  const auto with = [&](const char* part, const json& value) { return error_after([&](json& f) { f[part] = value; }); };
  EXPECT_THAT(with("normalizer", {{"type", "BertNormalizer"}}), HasSubstr("normalizer: the normalizer BertNormalizer"));
  EXPECT_THAT(with("pre_tokenizer", nullptr), HasSubstr("pre_tokenizer: there is none"));
  EXPECT_THAT(with("pre_tokenizer", {{"type", "Metaspace"}}), HasSubstr("pre_tokenizer: Metaspace is not supported"));
  EXPECT_THAT(with("post_processor", {{"type", "BertProcessing"}}), HasSubstr("post_processor: BertProcessing is not"));
  EXPECT_THAT(with("decoder", {{"type", "WordPiece"}}), HasSubstr("decoder: WordPiece is not supported"));
  const auto with_option = [&](const char* key, const json& value) {
    return error_after([&](json& f) { f["model"][key] = value; });
  };
  EXPECT_THAT(with_option("byte_fallback", true), HasSubstr("\"byte_fallback\" is true"));
  EXPECT_THAT(with_option("dropout", 0.1), HasSubstr("\"dropout\" is 0.1"));
  EXPECT_THAT(with_option("continuing_subword_prefix", "##"), HasSubstr("\"continuing_subword_prefix\" is \"##\""));
  EXPECT_THAT(with_option("unk_token", "nope"), HasSubstr("the unknown token 'nope' is not in the vocabulary"));
}

TEST_F(TokenizerJson, RefusesDamagedPipelines) {
  const auto with = [&](const char* part, const json& value) { return error_after([&](json& f) { f[part] = value; }); };
  const json split = {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}, {"invert", false}};
  EXPECT_THAT(with("pre_tokenizer", split), HasSubstr("pre_tokenizer: regular expression '(a'"));
  json odd = split;
  odd["pattern"] = {{"String", "x"}};
  odd["behavior"] = "Sideways";
  EXPECT_THAT(with("pre_tokenizer", odd), HasSubstr("pre_tokenizer: \"behavior\" is Sideways"));
  const json special = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const json sequence = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const auto with_template = [&](const json& single, const json& ids) {
    return with("post_processor", {{"type", "TemplateProcessing"},
                                   {"single", single},
                                   {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", ids}, {"tokens", {"<s>"}}}}}}});
  };
  EXPECT_EQ(with_template({special, sequence}, {3}), "");
  EXPECT_THAT(with_template({special, sequence}, {999999}), HasSubstr("'<s>' has the id 999999"));
  EXPECT_THAT(with_template(json::array({special}), {3}), HasSubstr("post_processor: \"single\" leaves the text out"));
  EXPECT_THAT(with_template({sequence, sequence}, {3}), HasSubstr("must have sequence A once"));
}

}  // namespace
}  // namespace distill::data
