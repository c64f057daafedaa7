// Reads the tokenizer in the metadata of a GGUF file.
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "data/bpe_tokenizer.h"
#include "data/gguf.h"
#include "data/gguf_pre_tokenizer.h"
#include "data/tokenizer.h"

namespace distill::data {
namespace {

using nlohmann::json;

constexpr const char* kTokens = "tokenizer.ggml.tokens";
constexpr const char* kTokenTypes = "tokenizer.ggml.token_type";
constexpr const char* kMerges = "tokenizer.ggml.merges";

// llama.cpp's token types that matter here.
constexpr int64_t kControl = 3;
constexpr int64_t kUserDefined = 4;

std::vector<std::pair<int32_t, int32_t>> parse_merges(const std::vector<std::string>& merges,
                                                      const Vocabulary& vocabulary) {
  std::vector<std::pair<int32_t, int32_t>> result;
  result.reserve(merges.size());
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ');
    core::check(space != std::string::npos && merge.find(' ', space + 1) == std::string::npos,
                "merge {}: '{}' is not two tokens with a space between them", result.size(), merge);
    const auto id_of = [&](const std::string& token) {
      const auto id = vocabulary.find(token);
      core::check(id.has_value(), "merge {}: token '{}' is not in the vocabulary", result.size(), token);
      return *id;
    };
    const int32_t left = id_of(merge.substr(0, space));
    result.emplace_back(left, id_of(merge.substr(space + 1)));
  }
  return result;
}

std::vector<AddedToken> added_tokens(const GgufFile& file, const std::vector<std::string>& tokens) {
  std::vector<AddedToken> result;
  if (!file.has(kTokenTypes)) return result;
  const std::vector<int64_t> types = file.integers(kTokenTypes);
  core::check(types.size() == tokens.size(), "{} has {} entries for {} tokens", kTokenTypes, types.size(),
              tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (types[id] != kControl && types[id] != kUserDefined) continue;
    result.push_back({.id = static_cast<int32_t>(id), .content = tokens[id], .special = types[id] == kControl});
  }
  return result;
}

// The id under `key`, as a one-token piece of a template; nothing if the key is absent.
std::optional<int32_t> special_id(const GgufFile& file, const char* key, const std::vector<std::string>& tokens) {
  if (!file.has(key)) return std::nullopt;
  const int64_t id = file.integer(key);
  core::check(id >= 0 && id < static_cast<int64_t>(tokens.size()), "{} is {}, which is not one of {} tokens", key, id,
              tokens.size());
  return static_cast<int32_t>(id);
}

// A TemplateProcessing that frames a text with BOS and EOS where the file wants them.
json post_processor(const GgufFile& file, const std::vector<std::string>& tokens, bool bos_by_default) {
  json single = json::array();
  json specials = json::object();
  const auto add = [&](const char* flag, const char* key, bool fallback) {
    if (!(file.has(flag) ? file.boolean(flag) : fallback)) return;
    const auto id = special_id(file, key, tokens);
    core::check(id.has_value(), "there is no {}, but {} wants it", key, flag);
    single.push_back({{"SpecialToken", {{"id", tokens[*id]}, {"type_id", 0}}}});
    specials[tokens[*id]] = {{"id", tokens[*id]}, {"ids", {*id}}, {"tokens", {tokens[*id]}}};
  };
  add("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", bos_by_default);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  add("tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", false);
  if (single.size() == 1) return {};
  return {{"type", "TemplateProcessing"}, {"single", single}, {"special_tokens", specials}};
}

std::shared_ptr<const Tokenizer> parse(const GgufFile& file) {
  const std::string model = file.text("tokenizer.ggml.model");
  core::check(model == "gpt2", "the tokenizer is '{}'; only byte-level BPE ('gpt2') is supported", model);
  const char* space_key = "tokenizer.ggml.add_space_prefix";
  const bool add_prefix_space = file.has(space_key) && file.boolean(space_key);
  const std::string pre = file.has("tokenizer.ggml.pre") ? file.text("tokenizer.ggml.pre") : "default";
  const GgufPreTokenizer known = gguf_pre_tokenizer(pre, add_prefix_space);

  const std::vector<std::string> tokens = file.texts(kTokens);
  TokenizerParts parts;
  parts.vocabulary = std::make_shared<Vocabulary>();
  for (size_t id = 0; id < tokens.size(); ++id) parts.vocabulary->add(tokens[id], static_cast<int64_t>(id));
  parts.merges = core::with_context(kMerges, [&] { return parse_merges(file.texts(kMerges), *parts.vocabulary); });
  parts.options.ignore_merges = known.ignore_merges;
  parts.added_tokens = added_tokens(file, tokens);
  parts.normalizer = TextNormalizer::from_json(known.normalizer);
  parts.pre_tokenizer = PreTokenizer::from_json(known.pre_tokenizer);
  return std::make_shared<BpeTokenizer>(std::move(parts), post_processor(file, tokens, known.add_bos_token));
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::from_gguf(const GgufFile& file) {
  return core::with_context(file.location(), [&] { return parse(file); });
}

}  // namespace distill::data
