#include "data/safetensors_writer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "core/atomic_file.h"
#include "core/error.h"
#include "data/safetensors_format.h"

namespace distill::data {
namespace {

// The 8 bytes of length and the JSON, padded so that the data begins aligned.
std::string encode_header(const std::vector<SafetensorsWriter::Declaration>& declarations,
                          const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header;
  if (!metadata.empty()) header[std::string(safetensors::kMetadataKey)] = metadata;
  std::set<std::string_view> names{safetensors::kMetadataKey};
  uint64_t offset = 0;
  size_t previous_item_bytes = SIZE_MAX;
  for (const auto& declaration : declarations) {
    core::check(names.insert(declaration.name).second, "tensor '{}': the name is already taken", declaration.name);
    const size_t item_bytes = c10::elementSize(declaration.type);
    core::check(item_bytes <= previous_item_bytes, "tensor '{}': a wider type follows a narrower one",
                declaration.name);
    previous_item_bytes = item_bytes;
    uint64_t bytes = item_bytes;
    for (const int64_t size : declaration.shape) bytes *= static_cast<uint64_t>(size);
    header[declaration.name] = {{"dtype", safetensors::dtype_name(declaration.type)},
                                {"shape", declaration.shape},
                                {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.is_null() ? "{}" : header.dump();
  text.append(
      (safetensors::kHeaderAlignment - text.size() % safetensors::kHeaderAlignment) % safetensors::kHeaderAlignment,
      ' ');
  core::check(text.size() <= safetensors::kMaxHeaderBytes, "too many tensors for one file");
  const uint64_t length = text.size();
  std::string result(sizeof length, '\0');
  std::memcpy(result.data(), &length, sizeof length);
  return result + text;
}

uint64_t total_bytes(const NamedTensors& tensors) {
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += tensor.nbytes();
  return bytes;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<Declaration> declarations,
                                     const std::map<std::string, std::string>& metadata)
    : path_(path), declarations_(std::move(declarations)) {
  const std::string header = core::with_context(path.string(), [&] { return encode_header(declarations_, metadata); });
  file_ = std::make_unique<core::AtomicFile>(path);
  file_->write(header);
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(const at::Tensor& tensor) {
  core::check(written_ < declarations_.size(), "{}: more tensors than were declared", path_.string());
  const Declaration& expected = declarations_[written_++];
  core::check(tensor.scalar_type() == expected.type && tensor.sizes() == at::IntArrayRef(expected.shape),
              "{}: tensor '{}' was declared as {} [{}] but is {} [{}]", path_.string(), expected.name,
              c10::toString(expected.type), fmt::join(expected.shape, ", "), c10::toString(tensor.scalar_type()),
              fmt::join(tensor.sizes(), ", "));
  const at::Tensor plain = tensor.detach().cpu().contiguous();
  file_->write(std::span(static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes()));
}

void SafetensorsWriter::commit() {
  core::check(written_ == declarations_.size(), "{}: only {} of {} declared tensors were written", path_.string(),
              written_, declarations_.size());
  file_->commit();
}

void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  NamedTensors ordered = tensors;
  std::ranges::stable_sort(ordered, std::ranges::greater{}, [](const auto& entry) { return entry.second.itemsize(); });
  std::vector<SafetensorsWriter::Declaration> declarations;
  for (const auto& [name, tensor] : ordered) {
    declarations.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
  }
  SafetensorsWriter writer(path, std::move(declarations), metadata);
  for (const auto& [name, tensor] : ordered) writer.write(tensor);
  writer.commit();
}

void write_safetensors_shards(const std::filesystem::path& directory, const NamedTensors& tensors,
                              uint64_t max_shard_bytes) {
  if (total_bytes(tensors) <= max_shard_bytes) {
    write_safetensors(directory / "model.safetensors", tensors);
    return;
  }
  std::vector<NamedTensors> shards(1);
  uint64_t shard_bytes = 0;
  for (const auto& entry : tensors) {
    if (!shards.back().empty() && shard_bytes + entry.second.nbytes() > max_shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().push_back(entry);
    shard_bytes += entry.second.nbytes();
  }
  nlohmann::json index{{"metadata", {{"total_size", total_bytes(tensors)}}}, {"weight_map", nlohmann::json::object()}};
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    for (const auto& [name, tensor] : shards[i]) index["weight_map"][name] = file;
    write_safetensors(directory / file, shards[i]);
  }
  core::write_file_atomically(directory / "model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace distill::data
