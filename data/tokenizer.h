// Byte-level BPE tokenizers, from a Hugging Face tokenizer.json or from GGUF metadata. Ids equal those of Hugging
// Face's `tokenizers` library.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace distill::data {

class GgufFile;

// Immutable after construction and safe to use from several threads at once.
class Tokenizer {
 public:
  // `path` names a tokenizer.json. Throws Error naming the file and what in it is unsupported or damaged.
  static std::shared_ptr<const Tokenizer> from_json_file(const std::filesystem::path& path);
  static std::shared_ptr<const Tokenizer> from_gguf(const GgufFile& file);
  virtual ~Tokenizer() = default;

  // `add_special_tokens` runs the post-processor (a BOS where the family adds one); special tokens written out in the
  // text are recognised in either case, as in `tokenizers`. Invalid UTF-8 is replaced by U+FFFD first.
  virtual std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = true) const = 0;

  // Always valid UTF-8: incomplete sequences become U+FFFD. Throws Error on an id outside the vocabulary.
  virtual std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const = 0;

  // The raw bytes one token stands for (a special token: its text).
  virtual std::string_view token_bytes(int32_t id) const = 0;

  // One more than the largest id.
  virtual int32_t vocab_size() const = 0;
  virtual std::optional<int32_t> token_to_id(std::string_view token) const = 0;
  virtual bool is_special(int32_t id) const = 0;

  // As a tokenizer.json that `tokenizers` loads with the same ids; needed where the source was GGUF.
  virtual std::string to_json() const = 0;

  // SHA-256 (hex) of what decides the ids: vocabulary, merges, added tokens, normaliser, pre-tokenizer, post-processor.
  virtual std::string fingerprint() const = 0;
};

// Turns a stream of ids into text that may be shown at once: holds back bytes until their character is complete.
class StreamDecoder {
 public:
  explicit StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens = true);
  std::string push(int32_t id);
  // What was held back, with U+FFFD for an incomplete character.
  std::string finish();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;
};

}  // namespace distill::data
