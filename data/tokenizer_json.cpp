// Reads tokenizer.json, the file format of Hugging Face's `tokenizers`.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/text_file.h"
#include "data/bpe_tokenizer.h"
#include "data/json_fields.h"
#include "data/tokenizer.h"

namespace distill::data {
namespace {

using nlohmann::json;

const json& member_or_null(const json& object, std::string_view key) {
  static const json null;
  const auto it = object.find(key);
  return it == object.end() ? null : *it;
}

std::shared_ptr<Vocabulary> parse_vocabulary(const json& vocab) {
  core::check(vocab.is_object(), "not an object but {}", vocab.type_name());
  auto vocabulary = std::make_shared<Vocabulary>();
  for (const auto& [token, id] : vocab.items()) {
    if (!id.is_number_integer()) core::fail("token '{}' has the id {}", token, id.dump());
    const bool is_huge = id.is_number_unsigned() && id.get<uint64_t>() > INT64_MAX;
    vocabulary->add(token, is_huge ? INT64_MAX : id.get<int64_t>());
  }
  return vocabulary;
}

// A merge is "left right" or ["left", "right"].
std::pair<std::string, std::string> parse_merge(const json& merge) {
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    core::check(space != std::string::npos && text.find(' ', space + 1) == std::string::npos,
                "'{}' is not two tokens with a space between them", text);
    return {text.substr(0, space), text.substr(space + 1)};
  }
  if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) {
    core::fail("{} is not a pair of tokens", merge.dump());
  }
  return {merge[0].get<std::string>(), merge[1].get<std::string>()};
}

std::vector<std::pair<int32_t, int32_t>> parse_merges(const json& merges, const Vocabulary& vocabulary) {
  core::check(merges.is_array(), "not an array but {}", merges.type_name());
  std::vector<std::pair<int32_t, int32_t>> result;
  result.reserve(merges.size());
  for (const json& merge : merges) {
    // Old files begin their merges with a comment.
    if (merge.is_string() && merge.get_ref<const std::string&>().starts_with("#version")) continue;
    core::with_context(fmt::format("merge {}", result.size()), [&] {
      const auto [left, right] = parse_merge(merge);
      const auto id_of = [&](const std::string& token) {
        const auto id = vocabulary.find(token);
        core::check(id.has_value(), "token '{}' is not in the vocabulary", token);
        return *id;
      };
      result.emplace_back(id_of(left), id_of(right));
    });
  }
  return result;
}

BpeOptions parse_options(const json& model) {
  const auto must_be_empty = [&](const char* key) {
    const json& value = member_or_null(model, key);
    const bool empty_text = value.is_string() && value.get_ref<const std::string&>().empty();
    if (value.is_null() || empty_text || value == 0.0) return;
    core::fail("\"{}\" is {}, which is not supported", key, value.dump());
  };
  must_be_empty("dropout");
  must_be_empty("continuing_subword_prefix");
  must_be_empty("end_of_word_suffix");
  core::check(!json_bool(model, "byte_fallback", false),
              "\"byte_fallback\" is true, so this is not byte-level BPE, the only kind supported");
  BpeOptions options;
  options.ignore_merges = json_bool(model, "ignore_merges", false);
  options.fuse_unknown = json_bool(model, "fuse_unk", false);
  if (!member_or_null(model, "unk_token").is_null()) options.unknown_token = json_text(model, "unk_token");
  return options;
}

std::vector<AddedToken> parse_added_tokens(const json& list) {
  std::vector<AddedToken> result;
  if (list.is_null()) return result;
  core::check(list.is_array(), "not an array but {}", list.type_name());
  for (size_t i = 0; i < list.size(); ++i) {
    core::with_context(fmt::format("entry {}", i), [&] {
      const json& entry = list[i];
      const json& id = json_member(entry, "id");
      if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(kMaxTokenId)) {
        core::fail("\"id\" is {}; ids go from 0 to {}", id.dump(), kMaxTokenId);
      }
      AddedToken token;
      token.id = id.get<int32_t>();
      token.content = json_text(entry, "content");
      token.single_word = json_bool(entry, "single_word", false);
      token.lstrip = json_bool(entry, "lstrip", false);
      token.rstrip = json_bool(entry, "rstrip", false);
      token.normalized = json_bool(entry, "normalized", true);
      token.special = json_bool(entry, "special", false);
      result.push_back(std::move(token));
    });
  }
  return result;
}

// Only what inverts byte-level encoding, which decode() does.
void check_decoder(const json& config) {
  const std::string type = json_text(config, "type");
  if (type == "ByteLevel") return;
  core::check(type == "Sequence", "{} is not supported; known is ByteLevel", type);
  const json& list = json_member(config, "decoders");
  core::check(list.is_array() && list.size() == 1, "a Sequence of more than ByteLevel is not supported");
  check_decoder(list[0]);
}

std::shared_ptr<const Tokenizer> parse(const json& file) {
  core::check(file.is_object(), "not a tokenizer: the file is not a JSON object");
  const json& model = json_member(file, "model");
  core::check(model.is_object(), "\"model\" is not an object");
  const json& type = member_or_null(model, "type");
  if (!type.is_null() && type != "BPE") core::fail("the model is {}; only BPE is supported", type.dump());

  TokenizerParts parts;
  parts.options = core::with_context("model", [&] { return parse_options(model); });
  parts.vocabulary = core::with_context("model.vocab", [&] { return parse_vocabulary(json_member(model, "vocab")); });
  parts.merges =
      core::with_context("model.merges", [&] { return parse_merges(json_member(model, "merges"), *parts.vocabulary); });
  parts.normalizer =
      core::with_context("normalizer", [&] { return TextNormalizer::from_json(member_or_null(file, "normalizer")); });
  parts.pre_tokenizer = core::with_context(
      "pre_tokenizer", [&] { return PreTokenizer::from_json(member_or_null(file, "pre_tokenizer")); });
  parts.added_tokens =
      core::with_context("added_tokens", [&] { return parse_added_tokens(member_or_null(file, "added_tokens")); });
  core::with_context("decoder", [&] { check_decoder(member_or_null(file, "decoder")); });
  return std::make_shared<BpeTokenizer>(std::move(parts), member_or_null(file, "post_processor"));
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::from_json_file(const std::filesystem::path& path) {
  const json file = core::read_json_file(path);
  return core::with_context(path.string(), [&] { return parse(file); });
}

}  // namespace distill::data
