#include "core/philox.h"

#include <cmath>
#include <numbers>

namespace distill::core {
namespace {

uint32_t low(uint64_t value) {
  return static_cast<uint32_t>(value);
}
uint32_t high(uint64_t value) {
  return static_cast<uint32_t>(value >> 32);
}

}  // namespace

std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53;
  constexpr uint64_t kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9;
  constexpr uint32_t kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiplier0 * counter[0];
    const uint64_t product1 = kMultiplier1 * counter[2];
    counter = {high(product1) ^ counter[1] ^ key[0], low(product1), high(product0) ^ counter[3] ^ key[1],
               low(product0)};
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  return counter;
}

// The 128-bit counter holds 64 bits of document, 32 of position and 32 of draw; a position beyond 2^32 goes to the key.
Philox::Philox(uint64_t seed, uint64_t document, uint64_t position)
    : key_{low(seed), high(seed) ^ high(position)}, counter_{0, low(position), low(document), high(document)} {}

void Philox::refill() {
  block_ = philox4x32_10(counter_, key_);
  ++counter_[0];
  used_ = 0;
}

uint32_t Philox::next_uint32() {
  if (used_ == 4) refill();
  return block_[used_++];
}

double Philox::next_double() {
  const uint64_t upper = next_uint32() >> 5;  // 27 bits
  const uint64_t lower = next_uint32() >> 6;  // 26 bits
  return static_cast<double>((upper << 26) | lower) * 0x1.0p-53;
}

uint32_t Philox::next_below(uint32_t bound) {
  // Rejects the first 2^32 mod bound values, so that the rest divide evenly.
  const uint32_t threshold = (0u - bound) % bound;
  uint32_t value = next_uint32();
  while (value < threshold) value = next_uint32();
  return value % bound;
}

double Philox::next_normal() {
  // Box-Muller; 1 - u is in (0, 1], so the logarithm is finite.
  const double radius = std::sqrt(-2.0 * std::log(1.0 - next_double()));
  return radius * std::cos(2.0 * std::numbers::pi * next_double());
}

uint64_t stream_id(std::string_view text, uint64_t index) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  hash += 0x9E3779B97F4A7C15 * (index + 1);
  hash = (hash ^ (hash >> 30)) * 0xBF58476D1CE4E5B9;
  hash = (hash ^ (hash >> 27)) * 0x94D049BB133111EB;
  return hash ^ (hash >> 31);
}

}  // namespace distill::core
