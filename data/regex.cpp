#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/regex.h"

#include <pcre2.h>

#include <array>

#include "core/error.h"

namespace distill::data {
namespace {

// Some tenths of a second at most for one match.
constexpr uint32_t kMatchLimit = 2'000'000;
constexpr uint32_t kHeapLimitKib = 64 << 10;

struct FreeMatch {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }

  // The ends of group `group` of the first match at or after `start`.
  std::optional<std::array<size_t, 2>> find(std::string_view text, size_t start, unsigned group,
                                            std::array<size_t, 2>& whole) const {
    const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create_from_pattern(code, nullptr));
    const std::unique_ptr<pcre2_match_context, FreeContext> context(pcre2_match_context_create(nullptr));
    pcre2_set_match_limit(context.get(), kMatchLimit);
    pcre2_set_heap_limit(context.get(), kHeapLimitKib);
    const int groups =
        pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start, 0, match.get(), context.get());
    if (groups <= 0) return {};
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match.get());
    whole = {ends[0], ends[1]};
    if (static_cast<int>(group) >= groups || ends[2 * group] == PCRE2_UNSET) return {};
    return std::array{ends[2 * group], ends[2 * group + 1]};
  }
};

Regex::Regex(std::string_view pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                             PCRE2_UTF | PCRE2_MATCH_INVALID_UTF, &error, &offset, nullptr);
  if (code->code == nullptr) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    core::fail("the pattern '{}' is wrong at character {}: {}", pattern, offset,
               reinterpret_cast<const char*>(message.data()));
  }
  code_ = std::move(code);
}

std::optional<std::string_view> Regex::first(std::string_view text, unsigned group) const {
  std::array<size_t, 2> whole{};
  const auto found = code_->find(text, 0, group, whole);
  if (!found) return {};
  return text.substr((*found)[0], (*found)[1] - (*found)[0]);
}

std::optional<std::string_view> Regex::last(std::string_view text, unsigned group) const {
  std::optional<std::string_view> result;
  std::array<size_t, 2> whole{SIZE_MAX, 0};
  for (size_t start = 0; start <= text.size();) {
    whole = {SIZE_MAX, 0};
    const auto found = code_->find(text, start, group, whole);
    if (whole[0] == SIZE_MAX) break;
    if (found) result = text.substr((*found)[0], (*found)[1] - (*found)[0]);
    start = whole[1] > whole[0] ? whole[1] : whole[1] + 1;
  }
  return result;
}

}  // namespace distill::data
