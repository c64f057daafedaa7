#include "data/utf8.h"

#include <algorithm>
#include <cstring>

namespace distill::data::utf8 {
namespace {

constexpr uint64_t kHighBits = 0x8080808080808080u;

struct Sequence {
  size_t length;  // bytes of the character, or of the maximal subpart of an ill-formed one
  size_t wanted;  // bytes the lead byte promises; `length` < `wanted` if ill-formed or cut off
};

// What stands at `p`, where p[0] >= 0x80 (Unicode 16, table 3-7).
Sequence sequence_at(const unsigned char* p, size_t available) {
  const unsigned lead = p[0];
  if (lead < 0xC2 || lead > 0xF4) return {1, 2};
  const size_t wanted = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (available < 2 || p[1] < low || p[1] > high) return {1, wanted};
  size_t length = 2;
  while (length < std::min(wanted, available) && (p[length] & 0xC0u) == 0x80u) ++length;
  return {length, wanted};
}

const unsigned char* bytes_of(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

}  // namespace

void append(std::string& text, char32_t code_point) {
  const auto put = [&](uint32_t byte) { text.push_back(static_cast<char>(byte)); };
  const uint32_t c = code_point;
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

size_t valid_prefix(std::string_view text) {
  const unsigned char* p = bytes_of(text);
  size_t i = 0;
  while (i < text.size()) {
    if (text.size() - i >= sizeof(uint64_t)) {
      uint64_t word = 0;
      std::memcpy(&word, p + i, sizeof word);
      if ((word & kHighBits) == 0) {
        i += sizeof word;
        continue;
      }
    }
    if (p[i] < 0x80) {
      ++i;
      continue;
    }
    const Sequence sequence = sequence_at(p + i, text.size() - i);
    if (sequence.length < sequence.wanted) return i;
    i += sequence.length;
  }
  return i;
}

std::string replace_invalid(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (;;) {
    const size_t valid = valid_prefix(text);
    result += text.substr(0, valid);
    text.remove_prefix(valid);
    if (text.empty()) return result;
    append(result, 0xFFFD);
    text.remove_prefix(sequence_at(bytes_of(text), text.size()).length);
  }
}

size_t incomplete_suffix(std::string_view text) {
  for (size_t length = std::min<size_t>(3, text.size()); length > 0; --length) {
    const unsigned char* p = bytes_of(text) + text.size() - length;
    if (p[0] < 0xC2 || p[0] > 0xF4) continue;
    const Sequence sequence = sequence_at(p, length);
    if (sequence.length == length && sequence.length < sequence.wanted) return length;
  }
  return 0;
}

}  // namespace distill::data::utf8
