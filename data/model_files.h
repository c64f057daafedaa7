// What a model PATH means, everywhere: a Hugging Face directory, a GGUF file, or a run or checkpoint directory of ours
// (which is a Hugging Face directory with the trainer's state beside it).
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/digest.h"
#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "data/weight_source.h"

namespace distill::data {

class GgufFile;

enum class ModelFormat { kHuggingFace, kGguf };

// Opens and checks the parts on demand; each throws Error naming the missing or damaged file.
class ModelFiles {
 public:
  // A directory with config.json; a *.gguf file; or a run directory, which stands for its newest complete checkpoint
  // (the one its `latest` file names). Throws Error saying what was looked for.
  static ModelFiles open(const std::filesystem::path& path);

  ModelFormat format() const { return format_; }
  // The directory or GGUF file after resolving run directories.
  const std::filesystem::path& path() const { return path_; }

  // config.json; for GGUF the same keys, translated from its metadata ("model_type": "llama" | "qwen2" | "qwen3" |
  // ...).
  const nlohmann::json& config() const { return config_; }
  // Where it was read, for messages about it: config.json, or the GGUF file itself.
  std::string config_location() const;
  // SHA-256 (hex) of config(), by which traces and runs know their teachers.
  std::string config_fingerprint() const { return core::sha256_hex(config_.dump()); }
  // Under Hugging Face's names and in its layout, whatever the format.
  std::shared_ptr<const WeightSource> weights() const;
  std::shared_ptr<const Tokenizer> tokenizer() const;
  // `override_family` is the value of --chat-template or empty. Null if the model has no template.
  std::shared_ptr<const ChatTemplate> chat_template(const std::string& override_family = {}) const;
  // Tokens that end generation: generation_config.json, then config.json, then the tokenizer's EOS.
  std::vector<int32_t> eos_token_ids() const;
  std::optional<int32_t> bos_token_id() const;

  // The file itself; null unless format() is kGguf.
  const std::shared_ptr<const GgufFile>& gguf() const { return gguf_; }

 private:
  ModelFiles() = default;
  // The JSON object in a file of the directory that not every model has; empty if it is not there.
  nlohmann::json optional_json(const char* name) const;
  // The text of the "bos" or "eos" token; empty if there is none.
  std::string special_token(const std::string& kind) const;
  std::optional<std::string> jinja() const;
  ModelFormat format_ = ModelFormat::kHuggingFace;
  std::filesystem::path path_;
  nlohmann::json config_;
  std::shared_ptr<const GgufFile> gguf_;
};

}  // namespace distill::data
