#include "data/byte_alphabet.h"

#include <array>

#include "data/utf8.h"

namespace distill::data::byte_alphabet {
namespace {

constexpr char32_t kFirstStandIn = 0x100;
constexpr size_t kStandIns = 68;  // bytes that do not stand for themselves

constexpr bool stands_for_itself(unsigned byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
  std::array<std::string, 256> of_byte;
  std::array<int16_t, kFirstStandIn + kStandIns> byte_of;  // -1: not in the alphabet

  Alphabet() {
    byte_of.fill(-1);
    char32_t stand_in = kFirstStandIn;
    for (unsigned byte = 0; byte < of_byte.size(); ++byte) {
      const char32_t character = stands_for_itself(byte) ? byte : stand_in++;
      utf8::append(of_byte[byte], character);
      byte_of[character] = static_cast<int16_t>(byte);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

std::optional<std::string> to_bytes(std::string_view token) {
  const auto& byte_of = alphabet().byte_of;
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t i = 0; i < token.size();) {
    const auto [character, length] = utf8::decode(reinterpret_cast<const unsigned char*>(token.data()) + i);
    if (character >= byte_of.size() || byte_of[character] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte_of[character]));
    i += length;
  }
  return bytes;
}

std::string from_bytes(std::string_view bytes) {
  std::string token;
  token.reserve(2 * bytes.size());
  for (const char byte : bytes) token += from_byte(static_cast<unsigned char>(byte));
  return token;
}

std::string_view from_byte(unsigned char byte) {
  return alphabet().of_byte[byte];
}

}  // namespace distill::data::byte_alphabet
