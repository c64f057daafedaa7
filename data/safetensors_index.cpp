// Directories of safetensors shards with a model.safetensors.index.json: {"weight_map": {tensor: shard file}}.
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text_file.h"
#include "data/safetensors.h"

namespace distill::data {
namespace {

namespace fs = std::filesystem;

class SafetensorsShards final : public WeightSource {
 public:
  explicit SafetensorsShards(fs::path index) : index_(std::move(index)) {
    const nlohmann::json parsed = core::read_json_file(index_);
    core::with_context(index_.string(), [&] { read(parsed); });
  }

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  std::string location() const override { return index_.string(); }

  at::Tensor load(std::string_view name) const override {
    const TensorInfo* info = find(name);
    core::check(info != nullptr, "{}: there is no tensor '{}'", location(), name);
    return shard_of(*info).load(name);
  }

  std::string fingerprint() const override {
    return fingerprint_tensors([this](const TensorInfo& tensor) {
      const SafetensorsFile& shard = shard_of(tensor);
      return shard.bytes(*shard.find(tensor.name));
    });
  }

 private:
  using Files = std::map<std::string, std::shared_ptr<const SafetensorsFile>>;

  const SafetensorsFile& shard_of(const TensorInfo& tensor) const { return *shards_.at(&tensor - tensors_.data()); }

  void read(const nlohmann::json& index) {
    core::check(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(),
                "it has no \"weight_map\" object");
    Files files;
    for (const auto& [name, value] : index["weight_map"].items()) {
      core::check(value.is_string(), "the shard of tensor '{}' is not a file name", name);
      const auto file = value.get<std::string>();
      // Symbolic links are fine (Hugging Face's cache is made of them); names that leave the directory are not.
      core::check(!file.empty() && file != "." && file != ".." && fs::path(file).filename() == file,
                  "tensor '{}' is said to lie in '{}', which is not a file beside the index", name, file);
      auto& shard = files[file];
      if (!shard) shard = SafetensorsFile::open(index_.parent_path() / file);
      const TensorInfo* info = shard->find(name);
      core::check(info != nullptr, "tensor '{}' is not in {}, where the index has it", name, file);
      tensors_.push_back(*info);
      shards_.push_back(shard);
    }
    refuse_unlisted(index["weight_map"], files);
  }

  static void refuse_unlisted(const nlohmann::json& places, const Files& files) {
    constexpr size_t kMostNames = 3;
    std::vector<std::string> unlisted;
    for (const auto& [file, shard] : files) {
      for (const TensorInfo& tensor : shard->tensors()) {
        const auto place = places.find(tensor.name);
        if (place == places.end() || *place != file) unlisted.push_back(fmt::format("'{}' in {}", tensor.name, file));
      }
    }
    const size_t more = unlisted.size() - std::min(unlisted.size(), kMostNames);
    unlisted.resize(unlisted.size() - more);
    core::check(unlisted.empty(),
                "the shards hold tensors that the index does not list: {}{}; it is damaged or of other files",
                fmt::join(unlisted, ", "), more > 0 ? fmt::format(" and {} more", more) : "");
  }

  fs::path index_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::shared_ptr<const SafetensorsFile>> shards_;  // of the tensor with the same index
};

}  // namespace

std::shared_ptr<const WeightSource> open_safetensors(const fs::path& path) {
  if (!fs::is_directory(path)) {
    if (path.extension() == ".json") return std::make_shared<SafetensorsShards>(path);
    return SafetensorsFile::open(path);
  }
  const fs::path index = path / "model.safetensors.index.json";
  if (fs::exists(index)) return std::make_shared<SafetensorsShards>(index);
  const fs::path single = path / "model.safetensors";
  core::check(fs::exists(single), "{}: there is neither model.safetensors nor model.safetensors.index.json",
              path.string());
  return SafetensorsFile::open(single);
}

}  // namespace distill::data
