#include "data/text_measures.h"

#include <cld2/internal/lang_script.h>
#include <cld2/public/compact_lang_det.h>
#include <unicode/uchar.h>
#include <unicode/uscript.h>
#include <unicode/utf8.h>

#include <array>
#include <set>
#include <string>

#include "core/error.h"

namespace distill::data {

double repetition(std::span<const int32_t> tokens) {
  constexpr size_t kRun = 4;
  if (tokens.size() <= kRun) return 0;
  std::set<std::array<int32_t, kRun>> seen;
  const size_t runs = tokens.size() - kRun + 1;
  for (size_t i = 0; i < runs; ++i) seen.insert({tokens[i], tokens[i + 1], tokens[i + 2], tokens[i + 3]});
  return 1 - static_cast<double>(seen.size()) / static_cast<double>(runs);
}

double script_share(std::string_view text, std::string_view script) {
  const int32_t wanted = u_getPropertyValueEnum(UCHAR_SCRIPT, std::string(script).c_str());
  if (wanted == UCHAR_INVALID_CODE) {
    core::fail_usage("there is no script '{}'; Unicode's names are Latin, Han, Cyrillic, Arabic, Devanagari, ...",
                     script);
  }
  uint64_t letters = 0, matching = 0;
  const auto length = static_cast<int32_t>(text.size());
  for (int32_t at = 0; at < length;) {
    UChar32 character = 0;
    U8_NEXT(text.data(), at, length, character);
    if (character < 0 || !u_isalpha(character)) continue;
    ++letters;
    UErrorCode error = U_ZERO_ERROR;
    matching += uscript_getScript(character, &error) == wanted ? 1 : 0;
  }
  return letters > 0 ? static_cast<double>(matching) / static_cast<double>(letters) : 1;
}

std::string language(std::string_view text) {
  bool confident = false;
  int valid = 0;
  const auto detect = [&](std::string_view part) {
    return CLD2::DetectLanguageCheckUTF8(part.data(), static_cast<int>(part.size()), true, &confident, &valid);
  };
  // An answer may end within a character.
  auto found = detect(text);
  if (static_cast<size_t>(valid) < text.size()) found = detect(text.substr(0, static_cast<size_t>(valid)));
  return confident && found != CLD2::UNKNOWN_LANGUAGE ? CLD2::LanguageCode(found) : "";
}

void check_language(std::string_view code) {
  const auto found = CLD2::GetLanguageFromName(std::string(code).c_str());
  if (found == CLD2::UNKNOWN_LANGUAGE || CLD2::LanguageCode(found) != code) {
    core::fail_usage("there is no language '{}'; codes are en, de, fr, zh, ja, ar, ...", code);
  }
}

}  // namespace distill::data
