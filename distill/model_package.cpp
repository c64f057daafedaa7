#include "distill/model_package.h"

#include <array>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/text_file.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::array kTextFiles{"tokenizer.json",
                                "tokenizer_config.json",
                                "special_tokens_map.json",
                                "chat_template.jinja",
                                "generation_config.json",
                                "added_tokens.json",
                                "vocab.json",
                                "merges.txt"};

// What transformers' tokenizer class needs to know beyond tokenizer.json.
ordered_json tokenizer_config(const data::ModelFiles& source, const data::Tokenizer& tokenizer) {
  const auto text = [&](int32_t id) { return std::string(tokenizer.token_bytes(id)); };
  ordered_json config{{"tokenizer_class", "PreTrainedTokenizerFast"},
                      {"clean_up_tokenization_spaces", false},
                      {"model_max_length", source.config().value("max_position_embeddings", 2048)}};
  if (const auto bos = source.bos_token_id()) config["bos_token"] = text(*bos);
  if (const auto eos = source.eos_token_ids(); !eos.empty()) {
    config["eos_token"] = text(eos.front());
    config["pad_token"] = text(eos.front());
  }
  return config;
}

ordered_json generation_config(const data::ModelFiles& source) {
  ordered_json config;
  if (const auto bos = source.bos_token_id()) config["bos_token_id"] = *bos;
  const auto eos = source.eos_token_ids();
  if (eos.size() == 1) config["eos_token_id"] = eos.front();
  if (eos.size() > 1) config["eos_token_id"] = eos;
  return config;
}

}  // namespace

std::map<std::string, std::string> tokenizer_files(const data::ModelFiles& source) {
  std::map<std::string, std::string> files;
  if (source.format() == data::ModelFormat::kHuggingFace) {
    for (const char* name : kTextFiles) {
      if (fs::exists(source.path() / name)) files[name] = core::read_file(source.path() / name);
    }
    core::check(files.contains("tokenizer.json"), "{}: there is no tokenizer.json", source.path().string());
    return files;
  }
  const auto tokenizer = source.tokenizer();
  files["tokenizer.json"] = tokenizer->to_json();
  files["tokenizer_config.json"] = tokenizer_config(source, *tokenizer).dump(2) + "\n";
  files["generation_config.json"] = generation_config(source).dump(2) + "\n";
  if (const auto chat = source.chat_template()) files["chat_template.jinja"] = chat->jinja();
  return files;
}

void write_model_package(const fs::path& directory, const ModelPackage& package, const data::NamedTensors& weights,
                         uint64_t max_shard_bytes) {
  core::write_file_atomically(directory / "config.json", package.config.dump(2) + "\n");
  for (const auto& [name, contents] : package.files) core::write_file_atomically(directory / name, contents);
  data::write_safetensors_shards(directory, weights, max_shard_bytes);
}

}  // namespace distill
