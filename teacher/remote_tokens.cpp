#include "teacher/remote_tokens.h"

#include <charconv>
#include <nlohmann/json.hpp>
#include <utility>

namespace distill::teacher {
namespace {

constexpr int32_t kSeveral = -1;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD: bytes that are no character alone

template <typename... Args>
[[noreturn]] void fail_mismatch(fmt::format_string<Args...> format, Args&&... args) {
  throw TokenMismatch(fmt::format(format, std::forward<Args>(args)...));
}

std::string in_quotes(std::string_view bytes) {
  return nlohmann::json(bytes).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// "token_id:42".
std::optional<int64_t> numbered(std::string_view text) {
  constexpr std::string_view kPrefix = "token_id:";
  if (!text.starts_with(kPrefix)) return std::nullopt;
  text.remove_prefix(kPrefix.size());
  int64_t id = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (code != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return id;
}

// "bytes:\xe2\x80" and such with plain characters between.
std::optional<std::string> escaped_bytes(std::string_view text) {
  constexpr std::string_view kPrefix = "bytes:";
  if (!text.starts_with(kPrefix) || text.find("\\x") == std::string_view::npos) return std::nullopt;
  text.remove_prefix(kPrefix.size());
  std::string bytes;
  while (!text.empty()) {
    if (!text.starts_with("\\x")) {
      bytes += text.front();
      text.remove_prefix(1);
      continue;
    }
    unsigned value = 0;
    if (text.size() < 4) return std::nullopt;
    const auto [end, code] = std::from_chars(text.data() + 2, text.data() + 4, value, 16);
    if (code != std::errc() || end != text.data() + 4) return std::nullopt;
    bytes += static_cast<char>(value);
    text.remove_prefix(4);
  }
  return bytes;
}

}  // namespace

RemoteToken RemoteToken::from_json(const nlohmann::json& json) {
  RemoteToken token;
  if (!json.is_object() || !json.contains("token") || !json["token"].is_string()) {
    core::fail("a token without its text: {}", json.dump());
  }
  token.text = json["token"].get<std::string>();
  if (const auto id = json.find("id"); id != json.end() && id->is_number_integer()) token.id = id->get<int64_t>();
  if (const auto bytes = json.find("bytes"); bytes != json.end() && bytes->is_array()) {
    token.bytes.emplace();
    for (const auto& byte : *bytes) {
      if (!byte.is_number_integer() || byte < 0 || byte > 255) {
        core::fail("token {}: {} is no byte", in_quotes(token.text), byte.dump());
      }
      *token.bytes += static_cast<char>(byte.get<int>());
    }
  }
  // null stands for minus infinity, which JSON cannot write.
  const auto value = json.find("logprob");
  if (value == json.end() || (!value->is_number() && !value->is_null())) {
    core::fail("token {} has no \"logprob\"", in_quotes(token.text));
  }
  token.log_probability = value->is_null() ? -std::numeric_limits<double>::infinity() : value->get<double>();
  return token;
}

RemoteTokenMapper::RemoteTokenMapper(std::shared_ptr<const data::Tokenizer> tokenizer)
    : tokenizer_(std::move(tokenizer)) {
  for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
    const auto [entry, added] = ids_.emplace(tokenizer_->token_bytes(id), id);
    if (!added) entry->second = kSeveral;
  }
}

int32_t RemoteTokenMapper::find(std::string_view bytes, const RemoteToken& token) const {
  const auto found = ids_.find(bytes);
  if (found == ids_.end()) {
    fail_mismatch("the server's token {} is none of the tokenizer's: is it the model's own?", in_quotes(token.text));
  }
  if (found->second == kSeveral) {
    fail_mismatch("several of the tokenizer's tokens read {}, and the server does not say which one it means",
                  in_quotes(bytes));
  }
  return found->second;
}

int32_t RemoteTokenMapper::id_of(const RemoteToken& token) const {
  std::optional<int64_t> id = token.id;
  if (!id) id = numbered(token.text);
  if (!id) {
    if (token.bytes) return find(*token.bytes, token);
    if (const auto bytes = escaped_bytes(token.text)) return find(*bytes, token);
    if (token.text.find(kReplacement) != std::string::npos && !ids_.contains(token.text)) {
      fail_mismatch("the server's token {} is a part of a character, and it does not say which bytes",
                    in_quotes(token.text));
    }
    return find(token.text, token);
  }
  if (*id < 0 || *id >= tokenizer_->vocab_size()) {
    fail_mismatch("the server's token {} has id {}, outside the tokenizer's {}: is it the model's own?",
                  in_quotes(token.text), *id, tokenizer_->vocab_size());
  }
  const auto known = static_cast<int32_t>(*id);
  // Servers write special tokens as nothing.
  if (token.bytes && *token.bytes != tokenizer_->token_bytes(known) &&
      !(token.bytes->empty() && tokenizer_->is_special(known))) {
    fail_mismatch(
        "the server's token {} of {} bytes has id {}, which reads {} here: it lost a token, or the tokenizer "
        "is not the model's own",
        in_quotes(token.text), token.bytes->size(), known, in_quotes(tokenizer_->token_bytes(known)));
  }
  return known;
}

}  // namespace distill::teacher
