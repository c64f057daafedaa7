// UTF-8 by hand, for text that is walked character by character: decoding, and replacing what is not UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace distill::data::utf8 {

struct Decoded {
  char32_t code_point;
  uint32_t length;  // bytes
};

// The character at `p`, which must begin one in valid UTF-8.
inline Decoded decode(const unsigned char* p) {
  const uint32_t lead = p[0];
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1Fu) << 6 | (p[1] & 0x3Fu), 2};
  if (lead < 0xF0) return {(lead & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu), 3};
  return {(lead & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu), 4};
}

void append(std::string& text, char32_t code_point);

// Bytes of the longest prefix of `text` that is valid UTF-8.
size_t valid_prefix(std::string_view text);

// `text` with U+FFFD in place of each maximal ill-formed subpart (Unicode 16, §3.9, as Python's errors="replace" and
// Rust's from_utf8_lossy do it).
std::string replace_invalid(std::string_view text);

// Bytes at the end of `text` that more bytes could still make a character of; 0 to 3.
size_t incomplete_suffix(std::string_view text);

}  // namespace distill::data::utf8
