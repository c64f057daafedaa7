#include "data/text_normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uniset.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "core/error.h"
#include "data/json_fields.h"

namespace distill::data {
namespace {

using nlohmann::json;

void check_icu(UErrorCode status, std::string_view what) {
  core::check(U_SUCCESS(status), "ICU: {}: {}", what, u_errorName(status));
}

// One of Unicode's normalisation forms, as of Unicode 9.0: that is what `tokenizers` implements, so characters assigned
// since then are left where they are.
class UnicodeForm final : public TextNormalizer {
 public:
  UnicodeForm(std::string name, const icu::Normalizer2* form)
      : name_(std::move(name)), form_(form), known_(known_characters()), filtered_(*form, known_) {}

  std::string_view apply(std::string_view text, std::string& buffer) const override {
    // The first character that any form touches is U+00A0; ASCII needs no look at all.
    if (std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x80; })) return text;
    const icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
    UErrorCode status = U_ZERO_ERROR;
    // Normal with newer characters taken into account means normal without them.
    if (form_->isNormalizedUTF8(piece, status) && U_SUCCESS(status)) return text;
    status = U_ZERO_ERROR;
    std::string result;
    icu::StringByteSink<std::string> sink(&result, static_cast<int32_t>(text.size()));
    filtered_.normalizeUTF8(0, piece, sink, nullptr, status);
    check_icu(status, name_);
    buffer = std::move(result);
    return buffer;
  }

  json to_json() const override { return {{"type", name_}}; }

 private:
  static const icu::UnicodeSet& known_characters() {
    static const icu::UnicodeSet set = [] {
      UErrorCode status = U_ZERO_ERROR;
      icu::UnicodeSet result(icu::UnicodeString("[:age=9.0:]"), status);
      check_icu(status, "[:age=9.0:]");
      result.freeze();
      return result;
    }();
    return set;
  }

  std::string name_;
  const icu::Normalizer2* form_;
  const icu::UnicodeSet& known_;
  icu::FilteredNormalizer2 filtered_;
};

class Prepend final : public TextNormalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}

  std::string_view apply(std::string_view text, std::string& buffer) const override {
    if (text.empty()) return text;
    std::string result = prefix_;
    result += text;
    buffer = std::move(result);
    return buffer;
  }

  json to_json() const override { return {{"type", "Prepend"}, {"prepend", prefix_}}; }

 private:
  std::string prefix_;
};

class Replace final : public TextNormalizer {
 public:
  Replace(std::string literal, std::string content) : literal_(std::move(literal)), content_(std::move(content)) {}

  std::string_view apply(std::string_view text, std::string& buffer) const override {
    size_t at = text.find(literal_);
    if (at == std::string_view::npos) return text;
    std::string result;
    size_t begin = 0;
    for (; at != std::string_view::npos; at = text.find(literal_, begin)) {
      result += text.substr(begin, at - begin);
      result += content_;
      begin = at + literal_.size();
    }
    result += text.substr(begin);
    buffer = std::move(result);
    return buffer;
  }

  json to_json() const override {
    return {{"type", "Replace"}, {"pattern", {{"String", literal_}}}, {"content", content_}};
  }

 private:
  std::string literal_;
  std::string content_;
};

class NormalizerSequence final : public TextNormalizer {
 public:
  explicit NormalizerSequence(std::vector<std::shared_ptr<const TextNormalizer>> steps) : steps_(std::move(steps)) {}

  std::string_view apply(std::string_view text, std::string& buffer) const override {
    std::string other;
    for (const auto& step : steps_) {
      // A step that reads `buffer` must write elsewhere.
      const std::string_view result = step->apply(text, other);
      if (result.data() == other.data()) {
        std::swap(buffer, other);
        text = buffer;
      }
    }
    return text;
  }

  json to_json() const override {
    json steps = json::array();
    for (const auto& step : steps_) steps.push_back(step->to_json());
    return {{"type", "Sequence"}, {"normalizers", std::move(steps)}};
  }

 private:
  std::vector<std::shared_ptr<const TextNormalizer>> steps_;
};

const icu::Normalizer2* unicode_form(std::string_view type) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* form = nullptr;
  if (type == "NFC") form = icu::Normalizer2::getNFCInstance(status);
  if (type == "NFD") form = icu::Normalizer2::getNFDInstance(status);
  if (type == "NFKC") form = icu::Normalizer2::getNFKCInstance(status);
  if (type == "NFKD") form = icu::Normalizer2::getNFKDInstance(status);
  check_icu(status, type);
  return form;
}

}  // namespace

std::shared_ptr<const TextNormalizer> TextNormalizer::from_json(const json& config) {
  if (config.is_null()) return nullptr;
  const std::string type = json_text(config, "type");
  if (const auto* form = unicode_form(type)) return std::make_shared<UnicodeForm>(type, form);
  if (type == "Prepend") return std::make_shared<Prepend>(json_text(config, "prepend"));
  if (type == "Replace") {
    const json& pattern = json_member(config, "pattern");
    if (!pattern.is_object() || !pattern.contains("String")) {
      core::fail("a Replace normalizer is supported for a \"String\" pattern only, not for {}", pattern.dump());
    }
    std::string literal = json_text(pattern, "String");
    core::check(!literal.empty(), "a Replace normalizer has an empty pattern");
    return std::make_shared<Replace>(std::move(literal), json_text(config, "content"));
  }
  if (type == "Sequence") {
    const json& list = json_member(config, "normalizers");
    core::check(list.is_array(), "\"normalizers\" is not an array");
    std::vector<std::shared_ptr<const TextNormalizer>> steps;
    for (const json& step : list) steps.push_back(from_json(step));
    core::check(std::ranges::find(steps, nullptr) == steps.end(), "\"normalizers\" has a null entry");
    if (steps.empty()) return nullptr;
    if (steps.size() == 1) return steps.front();
    return std::make_shared<NormalizerSequence>(std::move(steps));
  }
  core::fail("the normalizer {} is not supported; known are NFC, NFD, NFKC, NFKD, Prepend, Replace and Sequence", type);
}

}  // namespace distill::data
