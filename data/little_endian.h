// Numbers in files are little-endian and need not be aligned; these read and append them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace distill::data {

static_assert(std::endian::native == std::endian::little, "files are read and written on little-endian machines");

// Element `index` of an array of T that starts at `bytes`. The caller has checked that it lies inside.
template <typename T>
T load(const std::byte* bytes, size_t index = 0) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, bytes + index * sizeof(T), sizeof(T));
  return value;
}

template <typename T>
void append(std::vector<std::byte>& out, std::span<const T> values) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto bytes = std::as_bytes(values);
  out.insert(out.end(), bytes.begin(), bytes.end());
}

template <typename T>
void append_value(std::vector<std::byte>& out, T value) {
  append(out, std::span<const T>(&value, 1));
}

}  // namespace distill::data
