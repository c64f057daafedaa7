// What a pre-tokenizer splits text at: a regular expression or a literal. The expressions of well-known tokenizers are
// recognised by their exact text and run as hand-written matchers; any other runs on PCRE2.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace distill::data {

struct Segment {
  uint32_t begin;  // bytes
  uint32_t end;
  bool matched;
};

// Immutable and safe to use from several threads at once.
class SplitPattern {
 public:
  // `source` is written for Oniguruma, which Hugging Face's `tokenizers` uses. Throws Error quoting what PCRE2 would
  // read differently or not at all.
  static std::shared_ptr<const SplitPattern> regex(std::string source);
  static std::shared_ptr<const SplitPattern> literal(std::string source);
  virtual ~SplitPattern() = default;

  // Appends segments that cover `text` (valid UTF-8, shorter than 4 GiB) in order: each match, and what lies between.
  // Throws Error if matching takes unreasonably many steps.
  virtual void find(std::string_view text, std::vector<Segment>& segments) const = 0;

  const std::string& source() const { return source_; }
  bool is_literal() const { return is_literal_; }

 protected:
  SplitPattern(std::string source, bool is_literal) : source_(std::move(source)), is_literal_(is_literal) {}

 private:
  std::string source_;
  bool is_literal_;
};

// The pattern of GPT-2, which the ByteLevel pre-tokenizer applies.
extern const std::string_view kGpt2Pattern;
extern const std::string_view kLlama3Pattern;
extern const std::string_view kQwen2Pattern;
// DeepSeek-V3 applies these three one after the other.
extern const std::string_view kDeepSeekNumberPattern;
extern const std::string_view kDeepSeekCjkPattern;
extern const std::string_view kDeepSeekWordPattern;

// The hand-written matcher for `source`, or null.
std::shared_ptr<const SplitPattern> find_known_pattern(std::string_view source);
// `source` on PCRE2 whether it is known or not, for tests.
std::shared_ptr<const SplitPattern> make_pcre_pattern(std::string source);

}  // namespace distill::data
