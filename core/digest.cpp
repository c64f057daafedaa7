#include "core/digest.h"

#include <openssl/evp.h>

#include <array>
#include <cstring>

#include "core/error.h"

#ifdef __x86_64__
#include <nmmintrin.h>
#endif

namespace distill::core {

struct Sha256::State {
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  check(EVP_DigestInit_ex(state_->context.get(), EVP_sha256(), nullptr) == 1, "OpenSSL offers no SHA-256");
}

Sha256::~Sha256() = default;

void Sha256::update(std::span<const std::byte> bytes) {
  check(EVP_DigestUpdate(state_->context.get(), bytes.data(), bytes.size()) == 1, "SHA-256 update failed");
}

void Sha256::update(std::string_view text) {
  update(std::as_bytes(std::span(text)));
}

std::string Sha256::hex() {
  std::array<unsigned char, 32> digest{};
  check(EVP_DigestFinal_ex(state_->context.get(), digest.data(), nullptr) == 1, "SHA-256 failed");
  return fmt::format("{:02x}", fmt::join(digest, ""));
}

std::string sha256_hex(std::string_view text) {
  Sha256 digest;
  digest.update(text);
  return digest.hex();
}

namespace {

constexpr std::array<uint32_t, 256> make_crc32c_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) remainder = (remainder >> 1) ^ ((remainder & 1) ? 0x82F63B78u : 0u);
    table[byte] = remainder;
  }
  return table;
}

uint32_t crc32c_portable(std::span<const std::byte> bytes, uint32_t state) {
  static constexpr std::array<uint32_t, 256> kTable = make_crc32c_table();
  for (const std::byte byte : bytes) state = (state >> 8) ^ kTable[(state ^ static_cast<uint32_t>(byte)) & 0xFF];
  return state;
}

#ifdef __x86_64__
__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(std::span<const std::byte> bytes, uint32_t state) {
  uint64_t wide = state;
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  state = static_cast<uint32_t>(wide);
  for (; i < bytes.size(); ++i) state = _mm_crc32_u8(state, static_cast<uint8_t>(bytes[i]));
  return state;
}
#endif

}  // namespace

uint32_t crc32c(std::span<const std::byte> bytes, uint32_t previous) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("sse4.2")) return ~crc32c_sse42(bytes, ~previous);
#endif
  return ~crc32c_portable(bytes, ~previous);
}

}  // namespace distill::core
