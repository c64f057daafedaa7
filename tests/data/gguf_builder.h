// Builds GGUF files for tests, sound ones and others.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "data/gguf_format.h"

namespace distill::data {

template <typename T>
std::string raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

inline std::string raw_string(std::string_view text) {
  return raw<uint64_t>(text.size()) + std::string(text);
}

inline std::string raw_array(gguf::ValueType type, const std::vector<std::string>& elements) {
  std::string bytes = raw(type) + raw<uint64_t>(elements.size());
  for (const auto& element : elements) bytes += element;
  return bytes;
}

struct GgufBuilder {
  uint32_t version = 3;
  uint64_t alignment = 32;
  uint64_t metadata_count = 0;
  uint64_t tensor_count = 0;
  std::string metadata;
  std::string tensors;
  std::string data;

  GgufBuilder& value(std::string_view key, gguf::ValueType type, const std::string& bytes) {
    metadata += raw_string(key) + raw(type) + bytes;
    ++metadata_count;
    return *this;
  }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    return this->value(key, gguf::ValueType::kString, raw_string(value));
  }
  GgufBuilder& u32(std::string_view key, uint32_t value) {
    return this->value(key, gguf::ValueType::kUint32, raw(value));
  }
  GgufBuilder& f32(std::string_view key, float value) {
    return this->value(key, gguf::ValueType::kFloat32, raw(value));
  }
  GgufBuilder& boolean(std::string_view key, bool value) {
    return this->value(key, gguf::ValueType::kBool, raw<uint8_t>(value ? 1 : 0));
  }
  GgufBuilder& texts(std::string_view key, const std::vector<std::string>& values) {
    std::vector<std::string> elements;
    for (const auto& value : values) elements.push_back(raw_string(value));
    return this->value(key, gguf::ValueType::kArray, raw_array(gguf::ValueType::kString, elements));
  }

  // A header entry alone; `sizes` as in the file, the fastest varying first.
  GgufBuilder& tensor_entry(std::string_view name, const std::vector<uint64_t>& sizes, uint32_t type, uint64_t offset) {
    tensors += raw_string(name) + raw(static_cast<uint32_t>(sizes.size()));
    for (const uint64_t size : sizes) tensors += raw(size);
    tensors += raw(type) + raw(offset);
    ++tensor_count;
    return *this;
  }
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& sizes, gguf::TensorType type,
                      std::string_view bytes) {
    data.append((alignment - data.size() % alignment) % alignment, '\0');
    tensor_entry(name, sizes, static_cast<uint32_t>(type), data.size());
    data += bytes;
    return *this;
  }

  std::string header() const {
    return raw(gguf::kMagic) + raw(version) + raw(tensor_count) + raw(metadata_count) + metadata + tensors;
  }
  std::string build() const {
    std::string file = header();
    file.append((alignment - file.size() % alignment) % alignment, '\0');
    return file + data;
  }
};

}  // namespace distill::data
