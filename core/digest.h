// Checksums: SHA-256 fingerprints of what must be the same thing, CRC32C of what must have survived storage.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace distill::core {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  // The digest of all that was given, as 64 lower-case hex digits. Ends the computation.
  std::string hex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(std::string_view text);

// CRC32C (Castagnoli polynomial, RFC 3720 appendix B.4). `previous` continues an earlier checksum:
// crc32c(b, crc32c(a)) == crc32c(a + b).
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t previous = 0);

}  // namespace distill::core
