#include "data/gguf.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <optional>

#include "core/error.h"
#include "core/text_file.h"
#include "data/gguf_blocks.h"
#include "data/gguf_dequantise.h"

namespace distill::data {
namespace {

using gguf::ValueType;

static_assert(std::endian::native == std::endian::little, "GGUF files are read as they lie in memory");

// The smallest encodings, to bound counts by the bytes that are left.
constexpr uint64_t kMinStringBytes = 8;
constexpr uint64_t kMinArrayBytes = 12;
constexpr uint64_t kMinEntryBytes = kMinStringBytes + 4 + 1;
constexpr uint64_t kMinTensorBytes = kMinStringBytes + 4 + 4 + 8;

// Reads forward through the header; whatever would pass the end of the bytes is an error that names the place.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

  size_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }

  std::span<const std::byte> take(uint64_t count) {
    core::check(count <= left(), "truncated or damaged: {} bytes should follow at byte {}, but only {} do", count,
                position_, left());
    position_ += count;
    return bytes_.subspan(position_ - count, count);
  }

  template <typename T>
  T read() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }

  // A count of things that take at least `min_bytes` each.
  uint64_t read_count(uint64_t min_bytes, std::string_view things) {
    const auto count = read<uint64_t>();
    core::check(count <= left() / min_bytes,
                "damaged: {} {} are said to follow at byte {}, where only {} bytes are left", count, things, position_,
                left());
    return count;
  }

  std::span<const std::byte> read_string() { return take(read<uint64_t>()); }

  std::string read_utf8(std::string_view what) {
    const size_t begin = position_;
    const auto bytes = read_string();
    std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    core::check(core::find_invalid_utf8(text) == std::string_view::npos, "damaged: the {} at byte {} is not UTF-8",
                what, begin);
    return text;
  }

 private:
  std::span<const std::byte> bytes_;
  size_t position_ = 0;
};

ValueType read_type(Cursor& cursor) {
  const size_t begin = cursor.position();
  const auto type = static_cast<ValueType>(cursor.read<uint32_t>());
  core::check(gguf::value_bytes(type) > 0 || type == ValueType::kString || type == ValueType::kArray,
              "damaged: {} at byte {} is not a type of values", static_cast<uint32_t>(type), begin);
  return type;
}

std::span<const std::byte> take_values(Cursor& cursor, ValueType type, uint64_t count) {
  const auto bytes = cursor.take(count * gguf::value_bytes(type));
  core::check(type != ValueType::kBool || std::ranges::all_of(bytes, [](std::byte b) { return b <= std::byte{1}; }),
              "damaged: a boolean before byte {} is neither 0 nor 1", cursor.position());
  return bytes;
}

GgufValue read_array(Cursor& cursor, int depth) {
  core::check(depth <= gguf::kMaxArrayDepth, "damaged: arrays are nested deeper than {} at byte {}",
              gguf::kMaxArrayDepth, cursor.position());
  GgufValue value{ValueType::kArray, read_type(cursor), 0, {}};
  const uint64_t width = gguf::value_bytes(value.element_type);
  const bool strings = value.element_type == ValueType::kString;
  value.count = cursor.read_count(width > 0 ? width : strings ? kMinStringBytes : kMinArrayBytes, "array elements");
  Cursor elements = cursor;
  if (width > 0) {
    take_values(cursor, value.element_type, value.count);
  } else {
    for (uint64_t i = 0; i < value.count; ++i) {
      if (strings) {
        cursor.read_string();
      } else {
        read_array(cursor, depth + 1);
      }
    }
  }
  value.bytes = elements.take(cursor.position() - elements.position());
  return value;
}

GgufValue read_value(Cursor& cursor) {
  const ValueType type = read_type(cursor);
  if (type == ValueType::kArray) return read_array(cursor, 1);
  if (type == ValueType::kString) return {type, type, 1, cursor.read_string()};
  return {type, type, 1, take_values(cursor, type, 1)};
}

template <typename T>
T value_at(const GgufValue& value, uint64_t index) {
  T result;
  std::memcpy(&result, value.bytes.data() + index * sizeof(T), sizeof(T));
  return result;
}

// Element `index` of an array of numbers (or a number, with index 0).
int64_t integer_at(const GgufValue& value, uint64_t index) {
  switch (value.element_type) {
    case ValueType::kUint8:
      return value_at<uint8_t>(value, index);
    case ValueType::kInt8:
      return value_at<int8_t>(value, index);
    case ValueType::kUint16:
      return value_at<uint16_t>(value, index);
    case ValueType::kInt16:
      return value_at<int16_t>(value, index);
    case ValueType::kUint32:
      return value_at<uint32_t>(value, index);
    case ValueType::kInt32:
      return value_at<int32_t>(value, index);
    case ValueType::kInt64:
      return value_at<int64_t>(value, index);
    case ValueType::kUint64: {
      const auto number = value_at<uint64_t>(value, index);
      core::check(number <= INT64_MAX, "{} is too large", number);
      return static_cast<int64_t>(number);
    }
    default:
      core::fail("it holds {}, not integers", gguf::name(value.element_type));
  }
}

double number_at(const GgufValue& value, uint64_t index) {
  if (value.element_type == ValueType::kFloat32) return value_at<float>(value, index);
  if (value.element_type == ValueType::kFloat64) return value_at<double>(value, index);
  return static_cast<double>(integer_at(value, index));
}

void require_type(const GgufValue& value, ValueType type) {
  core::check(value.type == type, "it is of type {}, not {}", gguf::name(value.type), gguf::name(type));
}

void require_scalar(const GgufValue& value) {
  core::check(value.type != ValueType::kArray, "it is an array, not a single value");
}

std::string checked_text(std::span<const std::byte> bytes) {
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const size_t invalid = core::find_invalid_utf8(text);
  core::check(invalid == std::string::npos, "not valid UTF-8 at its byte {}", invalid);
  return text;
}

struct StoredTensor {
  TensorInfo info;
  uint64_t offset = 0;  // from the beginning of the data
};

StoredTensor read_tensor(Cursor& cursor) {
  StoredTensor tensor;
  tensor.info.name = cursor.read_utf8("name of a tensor");
  core::with_context(fmt::format("tensor '{}'", tensor.info.name), [&] {
    const auto dimensions = cursor.read<uint32_t>();
    core::check(dimensions <= gguf::kMaxDimensions, "it has {} dimensions (limit {})", dimensions,
                gguf::kMaxDimensions);
    for (uint32_t i = 0; i < dimensions; ++i) {
      const auto size = cursor.read<uint64_t>();
      core::check(size <= INT64_MAX, "its shape overflows");
      tensor.info.shape.insert(tensor.info.shape.begin(), static_cast<int64_t>(size));
    }
    const uint64_t values = checked_bytes(tensor.info.shape, 1);
    const auto type = cursor.read<uint32_t>();
    const gguf::BlockLayout* layout = gguf::block_layout(type);
    core::check(layout != nullptr, "its type {} is unknown", type);
    tensor.info.dtype = layout->name;
    const int64_t row = tensor.info.shape.empty() ? 1 : tensor.info.shape.back();
    core::check(row % layout->values == 0, "its rows of {} values are not made of whole {} blocks of {}", row,
                layout->name, layout->values);
    core::check(!__builtin_mul_overflow(values / layout->values, uint64_t{layout->bytes}, &tensor.info.bytes),
                "its shape overflows");
    tensor.offset = cursor.read<uint64_t>();
  });
  return tensor;
}

// Throws unless every tensor lies aligned within the data and no two overlap.
void check_extents(const std::vector<StoredTensor>& tensors, uint64_t data_bytes, uint64_t alignment) {
  for (const auto& [info, offset] : tensors) {
    core::check(offset % alignment == 0, "tensor '{}': its offset {} is not a multiple of the alignment {}", info.name,
                offset, alignment);
    core::check(offset <= data_bytes && info.bytes <= data_bytes - offset,
                "tensor '{}': its {} bytes at offset {} pass the end of the file, which has {} bytes of data; is it "
                "truncated?",
                info.name, info.bytes, offset, data_bytes);
  }
  std::vector<const StoredTensor*> order;
  for (const auto& tensor : tensors) {
    if (tensor.info.bytes > 0) order.push_back(&tensor);
  }
  std::ranges::sort(order, {}, &StoredTensor::offset);
  for (size_t i = 1; i < order.size(); ++i) {
    const StoredTensor& before = *order[i - 1];
    core::check(before.offset + before.info.bytes <= order[i]->offset, "tensors '{}' and '{}' overlap",
                before.info.name, order[i]->info.name);
  }
}

// Null for block-quantised types.
std::optional<at::ScalarType> scalar_type(gguf::TensorType type) {
  switch (type) {
    case gguf::TensorType::kF32:
      return at::kFloat;
    case gguf::TensorType::kF16:
      return at::kHalf;
    case gguf::TensorType::kBF16:
      return at::kBFloat16;
    case gguf::TensorType::kF64:
      return at::kDouble;
    case gguf::TensorType::kI8:
      return at::kChar;
    case gguf::TensorType::kI16:
      return at::kShort;
    case gguf::TensorType::kI32:
      return at::kInt;
    case gguf::TensorType::kI64:
      return at::kLong;
    default:
      return std::nullopt;
  }
}

at::Tensor dequantised(const gguf::BlockLayout& layout, std::span<const std::byte> blocks,
                       const std::vector<int64_t>& shape) {
  core::check(gguf::can_dequantise(layout.type), "its type {} is not supported", layout.name);
  at::Tensor result = at::empty(shape, at::kFloat);
  const std::span<float> values(result.mutable_data_ptr<float>(), static_cast<size_t>(result.numel()));
  constexpr int64_t kValuesPerTask = 1 << 16;
  const auto count = static_cast<int64_t>(blocks.size() / layout.bytes);
  at::parallel_for(0, count, kValuesPerTask / layout.values, [&](int64_t begin, int64_t end) {
    gguf::dequantise(layout.type, blocks.subspan(begin * layout.bytes, (end - begin) * layout.bytes),
                     values.subspan(begin * layout.values, (end - begin) * layout.values));
  });
  return result;
}

}  // namespace

std::shared_ptr<const GgufFile> GgufFile::open(const std::filesystem::path& path) {
  std::shared_ptr<GgufFile> result(new GgufFile);
  result->file_ = core::MappedFile::open(path);
  core::with_context(path.string(), [&] { result->parse(); });
  return result;
}

void GgufFile::parse() {
  Cursor cursor(file_->bytes());
  core::check(cursor.left() >= sizeof gguf::kMagic && cursor.read<uint32_t>() == gguf::kMagic,
              "not a GGUF file: it does not begin with \"GGUF\"");
  version_ = cursor.read<uint32_t>();
  core::check((version_ & 0xFFFFu) != 0 || version_ == 0, "a big-endian GGUF file, which is not supported");
  core::check(version_ >= gguf::kMinVersion && version_ <= gguf::kMaxVersion,
              "GGUF version {} is not supported (versions {} to {} are)", version_, gguf::kMinVersion,
              gguf::kMaxVersion);
  const uint64_t tensor_count = cursor.read_count(kMinTensorBytes, "tensors");
  const uint64_t metadata_count = cursor.read_count(kMinEntryBytes, "metadata entries");

  for (uint64_t i = 0; i < metadata_count; ++i) {
    std::string key = cursor.read_utf8("key of a metadata entry");
    const GgufValue value = core::with_context(fmt::format("key '{}'", key), [&] { return read_value(cursor); });
    const auto [it, inserted] = metadata_.try_emplace(std::move(key), value);
    core::check(inserted, "key '{}' occurs twice", it->first);
  }

  std::vector<StoredTensor> tensors;
  for (uint64_t i = 0; i < tensor_count; ++i) tensors.push_back(read_tensor(cursor));

  uint64_t alignment = gguf::kDefaultAlignment;
  if (const GgufValue* value = metadata(gguf::kAlignmentKey)) {
    core::check(value->type == ValueType::kUint32, "key '{}' is of type {}, not u32", gguf::kAlignmentKey,
                gguf::name(value->type));
    alignment = value_at<uint32_t>(*value, 0);
    core::check(std::has_single_bit(alignment), "key '{}': {} is not a power of two", gguf::kAlignmentKey, alignment);
  }
  const uint64_t padding = (alignment - cursor.position() % alignment) % alignment;
  cursor.take(std::min(padding, cursor.left()));
  check_extents(tensors, cursor.left(), alignment);

  std::ranges::sort(tensors, {}, [](const StoredTensor& tensor) -> const std::string& { return tensor.info.name; });
  for (auto& [info, offset] : tensors) {
    core::check(tensors_.empty() || tensors_.back().name != info.name, "tensor '{}' occurs twice", info.name);
    tensors_.push_back(std::move(info));
    offsets_.push_back(cursor.position() + offset);
  }
}

std::span<const std::byte> GgufFile::bytes(const TensorInfo& tensor) const {
  return file_->bytes().subspan(offsets_.at(&tensor - tensors_.data()), tensor.bytes);
}

const TensorInfo& GgufFile::require(std::string_view name) const {
  const TensorInfo* info = find(name);
  core::check(info != nullptr, "{}: there is no tensor '{}'", location(), name);
  return *info;
}

at::Tensor GgufFile::load(std::string_view name) const {
  const TensorInfo& info = require(name);
  const auto stored = bytes(info);
  const gguf::BlockLayout& layout = *gguf::block_layout(info.dtype);
  const auto type = scalar_type(layout.type);
  if (!type) {
    return core::with_context(fmt::format("{}: tensor '{}'", location(), name),
                              [&] { return dequantised(layout, stored, info.shape); });
  }
  if (reinterpret_cast<uintptr_t>(stored.data()) % c10::elementSize(*type) != 0) {
    at::Tensor copy = at::empty(info.shape, at::TensorOptions(*type));
    if (!stored.empty()) std::memcpy(copy.data_ptr(), stored.data(), stored.size());
    return copy;
  }
  // torch has no read-only tensors; the mapping itself is read-only.
  return at::from_blob(
      const_cast<std::byte*>(stored.data()), info.shape, [file = file_](void*) {}, at::TensorOptions(*type));
}

std::optional<kernels::BlockWeight> GgufFile::load_blocks(std::string_view name) const {
  const TensorInfo& info = require(name);
  return gguf::block_weight(gguf::block_layout(info.dtype)->type, bytes(info), info.shape);
}

at::Tensor GgufFile::load_fp32(std::string_view name) const {
  const TensorInfo& info = require(name);
  return core::with_context(fmt::format("{}: tensor '{}'", location(), name),
                            [&] { return dequantised(*gguf::block_layout(info.dtype), bytes(info), info.shape); });
}

std::string GgufFile::fingerprint() const {
  return fingerprint_tensors([this](const TensorInfo& tensor) { return bytes(tensor); });
}

const GgufValue* GgufFile::metadata(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it != metadata_.end() ? &it->second : nullptr;
}

template <typename Body>
auto GgufFile::with_value(std::string_view key, Body&& body) const {
  return core::with_context(fmt::format("{}: key '{}'", location(), key), [&] {
    const GgufValue* value = metadata(key);
    core::check(value != nullptr, "the file does not have it");
    return body(*value);
  });
}

std::string GgufFile::text(std::string_view key) const {
  return with_value(key, [](const GgufValue& value) {
    require_type(value, ValueType::kString);
    return checked_text(value.bytes);
  });
}

int64_t GgufFile::integer(std::string_view key) const {
  return with_value(key, [](const GgufValue& value) {
    require_scalar(value);
    return integer_at(value, 0);
  });
}

double GgufFile::number(std::string_view key) const {
  return with_value(key, [](const GgufValue& value) {
    require_scalar(value);
    return number_at(value, 0);
  });
}

bool GgufFile::boolean(std::string_view key) const {
  return with_value(key, [](const GgufValue& value) {
    require_type(value, ValueType::kBool);
    return value.bytes[0] != std::byte{0};
  });
}

std::vector<std::string> GgufFile::texts(std::string_view key) const {
  return with_value(key, [](const GgufValue& value) {
    require_type(value, ValueType::kArray);
    core::check(value.element_type == ValueType::kString, "it holds {}, not strings", gguf::name(value.element_type));
    std::vector<std::string> texts;
    texts.reserve(value.count);
    Cursor cursor(value.bytes);
    while (texts.size() < value.count) {
      core::with_context(fmt::format("string {}", texts.size()),
                         [&] { texts.push_back(checked_text(cursor.read_string())); });
    }
    return texts;
  });
}

std::vector<int64_t> GgufFile::integers(std::string_view key) const {
  return with_value(key, [](const GgufValue& value) {
    require_type(value, ValueType::kArray);
    std::vector<int64_t> result(value.count);
    for (uint64_t i = 0; i < value.count; ++i) result[i] = integer_at(value, i);
    return result;
  });
}

std::vector<double> GgufFile::numbers(std::string_view key) const {
  return with_value(key, [](const GgufValue& value) {
    require_type(value, ValueType::kArray);
    std::vector<double> result(value.count);
    for (uint64_t i = 0; i < value.count; ++i) result[i] = number_at(value, i);
    return result;
  });
}

}  // namespace distill::data
