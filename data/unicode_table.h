// The properties of code points that pre-tokenizers ask for, as Hugging Face's `tokenizers` 0.23 sees them (Unicode
// 16). Our own table, because PCRE2 and ICU come with older Unicode versions and ids must not depend on those.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace distill::data::unicode {

// Bits of a property word. Its low five bits are the general category, numbered as in unicode_runs.inc.
inline constexpr uint16_t kCategoryMask = 0x1F;
inline constexpr uint16_t kSpace = 1 << 5;         // White_Space, \s
inline constexpr uint16_t kNumeric = 1 << 6;       // Rust's char::is_numeric
inline constexpr uint16_t kWord = 1 << 7;          // \w of Rust's regex crate
inline constexpr uint16_t kLetter = 1 << 8;        // \p{L}
inline constexpr uint16_t kMark = 1 << 9;          // \p{M}
inline constexpr uint16_t kNumber = 1 << 10;       // \p{N}
inline constexpr uint16_t kPunctuation = 1 << 11;  // \p{P}
inline constexpr uint16_t kSymbol = 1 << 12;       // \p{S}
inline constexpr uint16_t kNewline = 1 << 13;      // \r and \n

class Table {
 public:
  // Built on first use; thread-safe.
  static const Table& instance();

  uint16_t operator[](char32_t code_point) const {
    return blocks_[block_of_[code_point >> kBlockBits]][code_point & (kBlockSize - 1)];
  }
  uint16_t ascii(unsigned char byte) const { return blocks_[0][byte]; }

 private:
  static constexpr uint32_t kBlockBits = 8;
  static constexpr uint32_t kBlockSize = 1u << kBlockBits;
  using Block = std::array<uint16_t, kBlockSize>;

  Table();
  std::vector<Block> blocks_;  // equal blocks are stored once; the first holds U+0000 to U+00FF
  std::array<uint16_t, (0x110000 >> kBlockBits)> block_of_{};
};

}  // namespace distill::data::unicode
