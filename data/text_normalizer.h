// The normalisers of tokenizer.json: NFC, NFKC, NFD, NFKD, Prepend, Replace (of a literal) and Sequences of
// them.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace distill::data {

// Immutable and safe to use from several threads at once.
class TextNormalizer {
 public:
  // `config` is the "normalizer" of a tokenizer.json; null gives null. Throws Error naming what is not supported.
  static std::shared_ptr<const TextNormalizer> from_json(const nlohmann::json& config);
  virtual ~TextNormalizer() = default;

  // Returns `text` (valid UTF-8) itself where it is normal already, else a view of `buffer`.
  virtual std::string_view apply(std::string_view text, std::string& buffer) const = 0;

  // As from_json reads it.
  virtual nlohmann::json to_json() const = 0;
};

}  // namespace distill::data
