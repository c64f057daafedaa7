#include <utility>

#include "data/tokenizer.h"
#include "data/utf8.h"

namespace distill::data {

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens)
    : tokenizer_(std::move(tokenizer)), skip_special_tokens_(skip_special_tokens) {}

std::string StreamDecoder::push(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->is_special(id)) return {};
  pending_ += tokenizer_->token_bytes(id);
  const size_t ready = pending_.size() - utf8::incomplete_suffix(pending_);
  std::string text = utf8::replace_invalid(std::string_view(pending_).substr(0, ready));
  pending_.erase(0, ready);
  return text;
}

std::string StreamDecoder::finish() {
  return utf8::replace_invalid(std::exchange(pending_, {}));
}

}  // namespace distill::data
