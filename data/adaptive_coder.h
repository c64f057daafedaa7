// Small numbers with probabilities learned on the way, for the tables that a codec stores once per shard.
// Layout in docs/trace-format.md, "Entropy coding".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace distill::data {

// Each value, below 32, is coded as five bits from the top; the probability of a bit depends on the bits above it and
// on the value before. Appends the coded stream.
void encode_adaptively(std::span<const uint8_t> values, std::vector<std::byte>& out);

// `count` values from exactly these bytes. Throws Error if they are not such a stream.
std::vector<uint8_t> decode_adaptively(std::span<const std::byte> bytes, size_t count);

}  // namespace distill::data
