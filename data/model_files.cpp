#include "data/model_files.h"

#include <algorithm>
#include <fstream>

#include "core/error.h"
#include "core/text_file.h"
#include "data/gguf.h"
#include "data/gguf_config.h"
#include "data/gguf_weights.h"
#include "data/safetensors.h"

namespace distill::data {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kConfig = "config.json";
constexpr const char* kLatest = "latest";
constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kJinja = "chat_template.jinja";
constexpr const char* kGgufTemplate = "tokenizer.chat_template";

bool begins_like_gguf(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[4] = {};
  return file.read(magic, sizeof magic) && std::string_view(magic, sizeof magic) == "GGUF";
}

// The checkpoint that a run directory's `latest` names.
fs::path newest_checkpoint(const fs::path& run) {
  const fs::path latest = run / kLatest;
  std::string name = core::read_file(latest);
  name.erase(name.find_last_not_of(" \t\r\n") + 1);
  core::check(!name.empty() && name != "." && name != ".." && fs::path(name).filename() == name,
              "{}: it should name a checkpoint beside it, but holds \"{}\"", latest.string(), name);
  core::check(fs::exists(run / name / kConfig), "{}: it names {}, but there is no {}", latest.string(), name,
              (run / name / kConfig).string());
  return run / name;
}

json read_object(const fs::path& path) {
  json value = core::read_json_file(path);
  core::check(value.is_object(), "{}: not a JSON object", path.string());
  return value;
}

// What a directory holds instead of what was looked for, where that helps.
std::string hint(const fs::path& directory) {
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() == ".gguf") return fmt::format("; did you mean {}?", entry.path().string());
  }
  return {};
}

int32_t token_id(const json& value, const std::string& where) {
  if (!value.is_number_integer() || value < 0 || value > INT32_MAX) {
    core::fail("{}: {} is not a token id", where, value.dump());
  }
  return value.get<int32_t>();
}

// A token id or a list of them.
std::vector<int32_t> token_ids(const json& value, const std::string& where) {
  if (!value.is_array()) return {token_id(value, where)};
  std::vector<int32_t> ids;
  for (const auto& id : value) ids.push_back(token_id(id, where));
  return ids;
}

// The value under `key`, or null.
const json& get(const json& object, const std::string& key) {
  static const json kNull;
  const auto it = object.find(key);
  return it != object.end() ? *it : kNull;
}

// A template as tokenizer_config.json has it: text, or a list of named ones of which "default" counts.
std::optional<std::string> template_text(const json& value, const std::string& where) {
  if (value.is_null()) return std::nullopt;
  if (value.is_string()) return value.get<std::string>();
  core::check(value.is_array(), "{}: \"chat_template\" is neither a text nor a list of templates", where);
  for (const auto& entry : value) {
    core::check(entry.is_object() && get(entry, "name").is_string() && get(entry, "template").is_string(),
                "{}: an entry of \"chat_template\" lacks its \"name\" or its \"template\"", where);
    if (entry["name"] == "default") return entry["template"].get<std::string>();
  }
  core::fail("{}: none of the templates under \"chat_template\" is named \"default\"", where);
}

}  // namespace

ModelFiles ModelFiles::open(const fs::path& path) {
  ModelFiles files;
  files.path_ = path;
  if (!fs::exists(path)) core::fail("there is no model {}: no such file or directory", path.string());
  if (fs::is_directory(path)) {
    if (!fs::exists(path / kConfig)) {
      core::check(
          fs::exists(path / kLatest),
          "{} is not a model: it has neither {} (a Hugging Face model or checkpoint) nor {} (a run directory){}",
          path.string(), kConfig, kLatest, hint(path));
      files.path_ = newest_checkpoint(path);
    }
    files.config_ = read_object(files.path_ / kConfig);
    return files;
  }
  core::check(path.extension() == ".gguf" || begins_like_gguf(path),
              "{} is not a model: give a GGUF file, or the directory that holds {}", path.string(), kConfig);
  files.format_ = ModelFormat::kGguf;
  files.gguf_ = GgufFile::open(path);
  files.config_ = gguf_config(*files.gguf_);
  return files;
}

std::string ModelFiles::config_location() const {
  return (format_ == ModelFormat::kGguf ? path_ : path_ / kConfig).string();
}

std::shared_ptr<const WeightSource> ModelFiles::weights() const {
  if (gguf_) return open_gguf_weights(gguf_, config_);
  return open_safetensors(path_);
}

std::shared_ptr<const Tokenizer> ModelFiles::tokenizer() const {
  if (gguf_) return Tokenizer::from_gguf(*gguf_);
  const fs::path file = path_ / kTokenizer;
  core::check(fs::exists(file), "{}: there is no {}{}", path_.string(), kTokenizer,
              fs::exists(path_ / "tokenizer.model")
                  ? " (there is a SentencePiece tokenizer.model, which is not supported; transformers can convert it)"
                  : "");
  return Tokenizer::from_json_file(file);
}

json ModelFiles::optional_json(const char* name) const {
  if (gguf_ || !fs::exists(path_ / name)) return json::object();
  return read_object(path_ / name);
}

std::string ModelFiles::special_token(const std::string& kind) const {
  if (gguf_) {
    constexpr const char* kTokens = "tokenizer.ggml.tokens";
    const std::string key = fmt::format("tokenizer.ggml.{}_token_id", kind);
    if (!gguf_->has(key) || !gguf_->has(kTokens)) return {};
    const int64_t id = gguf_->integer(key);
    const std::vector<std::string> tokens = gguf_->texts(kTokens);
    core::check(id >= 0 && id < static_cast<int64_t>(tokens.size()), "{}: key '{}': {} is not one of {} tokens",
                gguf_->location(), key, id, tokens.size());
    return tokens[id];
  }
  for (const char* file : {kTokenizerConfig, "special_tokens_map.json"}) {
    const json object = optional_json(file);
    const json& token = get(object, kind + "_token");
    if (token.is_string()) return token.get<std::string>();
    if (token.is_object() && get(token, "content").is_string()) return token["content"].get<std::string>();
    core::check(token.is_null(), "{}: \"{}_token\" is not a token", (path_ / file).string(), kind);
  }
  return {};
}

std::optional<std::string> ModelFiles::jinja() const {
  if (gguf_) return gguf_->has(kGgufTemplate) ? std::optional(gguf_->text(kGgufTemplate)) : std::nullopt;
  // As transformers has it: the file of its own wins.
  if (fs::exists(path_ / kJinja)) return core::read_file(path_ / kJinja);
  const json object = optional_json(kTokenizerConfig);
  return template_text(get(object, "chat_template"), (path_ / kTokenizerConfig).string());
}

std::shared_ptr<const ChatTemplate> ModelFiles::chat_template(const std::string& override_family) const {
  if (!override_family.empty()) {
    return ChatTemplate::from_family(override_family, special_token("bos"), special_token("eos"));
  }
  const auto text = jinja();
  if (!text) return nullptr;
  return core::with_context(
      path_.string(), [&] { return ChatTemplate::from_jinja(*text, special_token("bos"), special_token("eos")); });
}

std::vector<int32_t> ModelFiles::eos_token_ids() const {
  constexpr const char* kKey = "eos_token_id";
  const json generation = optional_json("generation_config.json");
  if (const json& value = get(generation, kKey); !value.is_null()) {
    return token_ids(value, fmt::format("{}: {}", (path_ / "generation_config.json").string(), kKey));
  }
  if (const json& value = get(config_, kKey); !value.is_null()) {
    return token_ids(value, fmt::format("{}: {}", (path_ / kConfig).string(), kKey));
  }
  const std::string text = special_token("eos");
  if (text.empty()) return {};
  const auto id = tokenizer()->token_to_id(text);
  return id ? std::vector{*id} : std::vector<int32_t>{};
}

std::optional<int32_t> ModelFiles::bos_token_id() const {
  constexpr const char* kKey = "bos_token_id";
  for (const auto& [file, object] :
       {std::pair("generation_config.json", optional_json("generation_config.json")), std::pair(kConfig, config_)}) {
    if (const json& value = get(object, kKey); !value.is_null()) {
      return token_id(value, fmt::format("{}: {}", (path_ / file).string(), kKey));
    }
  }
  const std::string text = special_token("bos");
  return text.empty() ? std::nullopt : tokenizer()->token_to_id(text);
}

}  // namespace distill::data
