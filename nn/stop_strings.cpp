#include "nn/stop_strings.h"

#include <algorithm>
#include <utility>

namespace distill::nn {
namespace {

// Length of the longest end of `text` that `string` begins with, `string` itself excluded.
size_t overlap(std::string_view text, std::string_view string) {
  size_t length = std::min(text.size(), string.size() - 1);
  while (length > 0 && !string.starts_with(text.substr(text.size() - length))) --length;
  return length;
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
  std::erase(strings_, std::string());
}

std::string StopStrings::push(std::string_view piece) {
  if (matched_) return {};
  pending_ += piece;
  size_t held = 0;
  // The match that is complete first; of several complete at once, the one that began first.
  size_t match = std::string::npos;
  size_t match_end = std::string::npos;
  for (const auto& string : strings_) {
    held = std::max(held, overlap(pending_, string));
    const size_t found = pending_.find(string);
    if (found == std::string::npos) continue;
    if (const size_t end = found + string.size(); end < match_end || (end == match_end && found < match)) {
      match = found;
      match_end = end;
    }
  }
  matched_ = match != std::string::npos;
  const size_t certain = matched_ ? match : pending_.size() - held;
  std::string text = pending_.substr(0, certain);
  pending_.erase(0, certain);
  return text;
}

std::string StopStrings::finish() {
  return matched_ ? std::string() : std::exchange(pending_, {});
}

}  // namespace distill::nn
