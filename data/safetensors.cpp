#include "data/safetensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/error.h"
#include "core/text_file.h"
#include "data/safetensors_format.h"

namespace distill::data {
namespace {

using nlohmann::json;

const json& member(const json& object, const char* key) {
  core::check(object.is_object(), "its header entry is not an object");
  const auto it = object.find(key);
  core::check(it != object.end(), "its header entry has no \"{}\"", key);
  return *it;
}

std::vector<int64_t> parse_shape(const json& value) {
  core::check(value.is_array(), "\"shape\" is not an array");
  std::vector<int64_t> shape;
  for (const auto& size : value) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > INT64_MAX) {
      core::fail("\"shape\" has the entry {}", size.dump());
    }
    shape.push_back(size.get<int64_t>());
  }
  return shape;
}

struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
};

Extent parse_extent(const json& value, uint64_t data_bytes) {
  if (!value.is_array() || value.size() != 2 || !value[0].is_number_unsigned() || !value[1].is_number_unsigned()) {
    core::fail("\"data_offsets\" is not a pair of offsets but {}", value.dump());
  }
  const Extent extent{value[0].get<uint64_t>(), value[1].get<uint64_t>()};
  core::check(extent.begin <= extent.end, "its data ends ({}) before it begins ({})", extent.end, extent.begin);
  core::check(extent.end <= data_bytes, "its data ends at {}, but the file has only {} bytes of data; is it truncated?",
              extent.end, data_bytes);
  return extent;
}

// Throws unless the tensors, taken in the order of their data, cover [begin, end) exactly.
void check_coverage(const std::vector<TensorInfo>& tensors, const std::vector<size_t>& offsets, size_t begin,
                    size_t end) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, [&](size_t a, size_t b) {
    return std::pair(offsets[a], tensors[a].bytes) < std::pair(offsets[b], tensors[b].bytes);
  });
  size_t covered = begin;
  for (const size_t i : order) {
    core::check(offsets[i] >= covered, "tensor '{}' overlaps the one before it", tensors[i].name);
    core::check(offsets[i] == covered, "{} bytes before tensor '{}' belong to no tensor", offsets[i] - covered,
                tensors[i].name);
    covered += tensors[i].bytes;
  }
  core::check(covered == end, "{} bytes after the last tensor belong to no tensor", end - covered);
}

void check_bools(std::span<const std::byte> bytes) {
  core::check(std::ranges::all_of(bytes, [](std::byte b) { return b <= std::byte{1}; }),
              "a BOOL tensor has bytes other than 0 and 1");
}

}  // namespace

std::shared_ptr<const SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  std::shared_ptr<SafetensorsFile> result(new SafetensorsFile);
  result->file_ = core::MappedFile::open(path);
  core::with_context(path.string(), [&] { result->parse(); });
  return result;
}

void SafetensorsFile::parse() {
  const auto bytes = file_->bytes();
  core::check(bytes.size() >= safetensors::kLengthBytes, "{} bytes are too few for a safetensors file", bytes.size());
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  core::check(header_bytes <= safetensors::kMaxHeaderBytes,
              "not a safetensors file: its header would take {} bytes (limit {})", header_bytes,
              safetensors::kMaxHeaderBytes);
  core::check(header_bytes <= bytes.size() - safetensors::kLengthBytes,
              "truncated: the header takes {} bytes, the file has {}", header_bytes, bytes.size());

  const auto* text = reinterpret_cast<const char*>(bytes.data()) + safetensors::kLengthBytes;
  const size_t data_begin = safetensors::kLengthBytes + header_bytes;
  const json header = core::with_context("header", [&] { return core::parse_json({text, header_bytes}); });
  core::check(header.is_object(), "the header is not a JSON object");

  // nlohmann's objects iterate in the order of their keys, so tensors_ is sorted by name.
  for (const auto& [name, entry] : header.items()) {
    if (name == safetensors::kMetadataKey) {
      core::check(entry.is_object(), "{} is not an object", name);
      for (const auto& [key, value] : entry.items()) {
        core::check(value.is_string(), "{} entry '{}' is not a string", name, key);
        metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    core::with_context(fmt::format("tensor '{}'", name), [&, &name = name, &entry = entry] {
      const json& dtype = member(entry, "dtype");
      core::check(dtype.is_string(), "\"dtype\" is not a string");
      TensorInfo info{name, dtype.get<std::string>(), parse_shape(member(entry, "shape")), 0};
      const auto type = safetensors::scalar_type(info.dtype);
      core::check(type.has_value(), "dtype {} is not supported", info.dtype);
      const Extent extent = parse_extent(member(entry, "data_offsets"), bytes.size() - data_begin);
      info.bytes = checked_bytes(info.shape, c10::elementSize(*type));
      core::check(info.bytes == extent.end - extent.begin, "{} of shape [{}] takes {} bytes, but the file gives it {}",
                  info.dtype, fmt::join(info.shape, ", "), info.bytes, extent.end - extent.begin);
      tensors_.push_back(std::move(info));
      offsets_.push_back(data_begin + extent.begin);
    });
  }
  check_coverage(tensors_, offsets_, data_begin, bytes.size());
}

std::span<const std::byte> SafetensorsFile::bytes(const TensorInfo& tensor) const {
  return file_->bytes().subspan(offsets_.at(&tensor - tensors_.data()), tensor.bytes);
}

at::Tensor SafetensorsFile::load(std::string_view name) const {
  const TensorInfo* info = find(name);
  core::check(info != nullptr, "{}: there is no tensor '{}'", location(), name);
  const auto stored = bytes(*info);
  const at::ScalarType type = *safetensors::scalar_type(info->dtype);
  if (type == at::kBool)
    core::with_context(fmt::format("{}: tensor '{}'", location(), name), [&] { check_bools(stored); });

  if (reinterpret_cast<uintptr_t>(stored.data()) % c10::elementSize(type) != 0) {
    at::Tensor copy = at::empty(info->shape, at::TensorOptions(type));
    if (!stored.empty()) std::memcpy(copy.data_ptr(), stored.data(), stored.size());
    return copy;
  }
  // torch has no read-only tensors; the mapping itself is read-only.
  return at::from_blob(
      const_cast<std::byte*>(stored.data()), info->shape, [file = file_](void*) {}, at::TensorOptions(type));
}

std::string SafetensorsFile::fingerprint() const {
  return fingerprint_tensors([this](const TensorInfo& tensor) { return bytes(tensor); });
}

}  // namespace distill::data
