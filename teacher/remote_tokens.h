// Finds out which of the tokenizer's ids a token is that a server names, by number, by bytes or by text.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "core/error.h"
#include "data/tokenizer.h"

namespace distill::teacher {

// What a server says of tokens does not fit the tokenizer or its own other words: no retry would help.
class TokenMismatch : public core::Error {
 public:
  using Error::Error;
};

// A token as completion APIs write it.
struct RemoteToken {
  std::optional<int64_t> id{};         // llama.cpp: "id"
  std::optional<std::string> bytes{};  // OpenAI's chat API and llama.cpp: "bytes"
  std::string text{};                  // "token"; "token_id:42" (vLLM) and "bytes:\xe2\x80" (OpenAI) are understood
  double log_probability = 0;

  // {"token", "id", "bytes", "logprob"}. Throws Error if it is none.
  static RemoteToken from_json(const nlohmann::json& json);
};

// Immutable and safe to use from several threads at once.
class RemoteTokenMapper {
 public:
  explicit RemoteTokenMapper(std::shared_ptr<const data::Tokenizer> tokenizer);

  // Throws TokenMismatch if no id or several have its bytes, or id and bytes contradict each other.
  int32_t id_of(const RemoteToken& token) const;

  const data::Tokenizer& tokenizer() const { return *tokenizer_; }

 private:
  int32_t find(std::string_view bytes, const RemoteToken& token) const;

  std::shared_ptr<const data::Tokenizer> tokenizer_;
  std::unordered_map<std::string_view, int32_t> ids_;  // by bytes; kSeveral where it takes more to tell
};

}  // namespace distill::teacher
