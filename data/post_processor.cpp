#include "data/post_processor.h"

#include <string>

#include "core/error.h"
#include "data/json_fields.h"

namespace distill::data {
namespace {

using nlohmann::json;

void append_special(const json& specials, const std::string& name, const Vocabulary& vocabulary,
                    std::vector<int32_t>& ids) {
  const json& special = json_member(specials, name);
  const json& list = json_member(special, "ids");
  core::check(list.is_array(), "the \"ids\" of '{}' are not an array", name);
  for (const json& id : list) {
    if (!id.is_number_integer() || !vocabulary.contains(id.get<int64_t>())) {
      core::fail("the special token '{}' has the id {}, which is not in the vocabulary", name, id.dump());
    }
    ids.push_back(id.get<int32_t>());
  }
}

PostProcessor parse_template(const json& config, const Vocabulary& vocabulary) {
  const json& pieces = json_member(config, "single");
  const json& specials = json_member(config, "special_tokens");
  core::check(pieces.is_array(), "\"single\" is not an array");
  PostProcessor result;
  bool after_text = false;
  for (const json& piece : pieces) {
    if (!piece.is_object() || piece.size() != 1) core::fail("\"single\" has the entry {}", piece.dump());
    const std::string& kind = piece.begin().key();
    const json& fields = piece.begin().value();
    if (kind == "Sequence") {
      core::check(!after_text && json_text(fields, "id") == "A", "\"single\" must have sequence A once and no other");
      after_text = true;
    } else if (kind == "SpecialToken") {
      append_special(specials, json_text(fields, "id"), vocabulary, after_text ? result.suffix : result.prefix);
    } else {
      core::fail("\"single\" has the entry {}", piece.dump());
    }
  }
  core::check(after_text, "\"single\" leaves the text out");
  return result;
}

}  // namespace

PostProcessor PostProcessor::from_json(const json& config, const Vocabulary& vocabulary) {
  if (config.is_null()) return {};
  const std::string type = json_text(config, "type");
  if (type == "ByteLevel") return {};
  if (type == "TemplateProcessing") return parse_template(config, vocabulary);
  core::check(type == "Sequence", "{} is not supported; known are TemplateProcessing, ByteLevel and Sequence", type);
  const json& list = json_member(config, "processors");
  core::check(list.is_array(), "\"processors\" is not an array");
  PostProcessor result;
  for (const json& step : list) {
    core::check(!step.is_null(), "\"processors\" has a null entry");
    const PostProcessor outer = from_json(step, vocabulary);
    result.prefix.insert(result.prefix.begin(), outer.prefix.begin(), outer.prefix.end());
    result.suffix.insert(result.suffix.end(), outer.suffix.begin(), outer.suffix.end());
  }
  return result;
}

json PostProcessor::to_json(const Vocabulary& vocabulary) const {
  const json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", false}, {"use_regex", true}};
  if (prefix.empty() && suffix.empty()) return byte_level;
  json specials = json::object();
  const auto pieces = [&](const std::vector<int32_t>& ids, int type_id) {
    json list = json::array();
    for (const int32_t id : ids) {
      const std::string text(vocabulary.text(id));
      list.push_back({{"SpecialToken", {{"id", text}, {"type_id", type_id}}}});
      specials[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
    }
    return list;
  };
  json single = json::array();
  json pair = json::array();
  const auto frame = [&](json& out, const char* sequence, int type_id) {
    for (auto& piece : pieces(prefix, type_id)) out.push_back(piece);
    out.push_back({{"Sequence", {{"id", sequence}, {"type_id", type_id}}}});
    for (auto& piece : pieces(suffix, type_id)) out.push_back(piece);
  };
  frame(single, "A", 0);
  frame(pair, "A", 0);
  frame(pair, "B", 1);
  const json processing = {
      {"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
  return {{"type", "Sequence"}, {"processors", {byte_level, processing}}};
}

}  // namespace distill::data
