#include "data/text_measures.h"

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

}  // namespace distill::data
