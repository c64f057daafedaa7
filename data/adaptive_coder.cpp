#include "data/adaptive_coder.h"

#include <array>

#include "core/error.h"
#include "data/rans.h"

namespace distill::data {
namespace {

constexpr unsigned kBits = 5;

// Probability that a bit is 0, of 4096; never 0 or 4096.
class BitModel {
 public:
  uint16_t zero() const { return zero_; }
  void update(bool bit) {
    constexpr int kRate = 5;
    zero_ = static_cast<uint16_t>(bit ? zero_ - (zero_ >> kRate) : zero_ + ((4096 - zero_) >> kRate));
  }

 private:
  uint16_t zero_ = 2048;
};

// [value before][bits above, with a leading 1]
using Models = std::array<std::array<BitModel, 1 << kBits>, 1 << kBits>;

}  // namespace

void encode_adaptively(std::span<const uint8_t> values, std::vector<std::byte>& out) {
  Models models;
  RansEncoder encoder;
  uint8_t before = 0;
  for (const uint8_t value : values) {
    core::check(value < (1u << kBits), "value {} is too large", value);
    unsigned above = 1;
    for (unsigned i = kBits; i-- > 0;) {
      const bool bit = value >> i & 1;
      BitModel& model = models[before][above];
      encoder.put_bit(0, model.zero(), bit);
      model.update(bit);
      above = above << 1 | bit;
    }
    before = value;
  }
  encoder.finish(1, out);
}

std::vector<uint8_t> decode_adaptively(std::span<const std::byte> bytes, size_t count) {
  Models models;
  RansDecoder decoder(bytes, 1);
  std::vector<uint8_t> values(count);
  uint8_t before = 0;
  for (uint8_t& value : values) {
    unsigned above = 1;
    for (unsigned i = 0; i < kBits; ++i) {
      BitModel& model = models[before][above];
      const bool bit = decoder.get_bit(0, model.zero());
      model.update(bit);
      above = above << 1 | bit;
    }
    before = value = static_cast<uint8_t>(above & ((1u << kBits) - 1));
  }
  decoder.finish();
  return values;
}

}  // namespace distill::data
