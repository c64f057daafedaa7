#include "data/file_description.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <string>

#include "core/error.h"
#include "core/text_file.h"
#include "data/gguf.h"
#include "data/gguf_config.h"
#include "data/model_files.h"
#include "data/safetensors.h"
#include "data/trace_reader.h"
#include "data/trace_shard.h"
#include "kernels/mla_attention/fp8_entries.h"

namespace distill::data {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kSafetensorsIndex = "model.safetensors.index.json";
constexpr const char* kSafetensorsSingle = "model.safetensors";
constexpr const char* kShard = ".h5";
constexpr const char* kTokenizer = "tokenizer.json";

uint64_t count_values(const TensorInfo& tensor) {
  uint64_t values = 1;
  for (const int64_t size : tensor.shape) values *= static_cast<uint64_t>(size);
  return values;
}

struct Amount {
  uint64_t tensors = 0;
  uint64_t parameters = 0;
  uint64_t bytes = 0;

  void add(const TensorInfo& tensor) {
    ++tensors;
    parameters += count_values(tensor);
    bytes += tensor.bytes;
  }
  ordered_json to_json() const { return {{"tensors", tensors}, {"parameters", parameters}, {"bytes", bytes}}; }
};

void describe_weights(const WeightSource& source, const DescribeOptions& options, ordered_json& into) {
  Amount total;
  std::map<std::string, Amount> by_dtype;
  for (const TensorInfo& tensor : source.tensors()) {
    total.add(tensor);
    by_dtype[tensor.dtype].add(tensor);
  }
  ordered_json& weights = into["weights"] = total.to_json();
  weights["dtypes"] = ordered_json::object();
  for (const auto& [dtype, amount] : by_dtype) weights["dtypes"][dtype] = amount.to_json();
  if (options.fingerprint) weights["fingerprint"] = source.fingerprint();
  if (!options.tensors) return;
  into["tensors"] = ordered_json::array();
  for (const TensorInfo& tensor : source.tensors()) {
    into["tensors"].push_back(
        {{"name", tensor.name}, {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"bytes", tensor.bytes}});
  }
}

ordered_json describe_tokenizer(const Tokenizer& tokenizer) {
  int32_t special = 0;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) special += tokenizer.is_special(id) ? 1 : 0;
  return {
      {"vocab_size", tokenizer.vocab_size()}, {"special_tokens", special}, {"fingerprint", tokenizer.fingerprint()}};
}

// config[key], or 0 if it is no size whose products with others are sure not to overflow.
int64_t bounded_size(const nlohmann::json& config, const char* key) {
  constexpr int64_t kLargest = 1 << 16;
  const auto it = config.find(key);
  const int64_t value = it != config.end() && it->is_number_integer() ? it->get<int64_t>() : 0;
  return value >= 0 && value <= kLargest ? value : 0;
}

// Of keys and values in bf16 over all layers; null if the config does not tell. DeepSeek's latent attention caches one
// compressed vector and one rotated key per layer instead; its prediction modules, which cache as much each, are left
// out, for a checkpoint may lack them.
ordered_json cache_bytes_per_token(const nlohmann::json& config) {
  const auto given = [&](const char* key) { return config.contains(key) && !config[key].is_null(); };
  const auto size = [&](const char* key) { return bounded_size(config, key); };
  constexpr int64_t kBytes = 2;
  int64_t values = 0;  // per layer
  if (given("kv_lora_rank")) {
    values = size("kv_lora_rank") > 0 ? size("kv_lora_rank") + size("qk_rope_head_dim") : 0;
  } else if (const int64_t heads = size("num_attention_heads"); heads > 0) {
    values = 2 * (given("num_key_value_heads") ? size("num_key_value_heads") : heads) *
             (given("head_dim") ? size("head_dim") : size("hidden_size") / heads);
  }
  const int64_t bytes = size("num_hidden_layers") * values * kBytes;
  return bytes > 0 ? ordered_json(bytes) : ordered_json();
}

// For latent attention: what ordinary attention of the same size would cache instead, with keys and values of every
// head ("mha") or of a group of 8 ("gqa_8"), in bf16. Null for other models.
ordered_json cache_of_ordinary_attention(const nlohmann::json& config) {
  const auto size = [&](const char* key) { return bounded_size(config, key); };
  const int64_t heads = size("num_attention_heads");
  if (size("kv_lora_rank") == 0 || heads == 0) return nullptr;
  constexpr int64_t kBytes = 2;
  constexpr int64_t kGroups = 8;
  const int64_t per_head =
      size("num_hidden_layers") * (size("qk_nope_head_dim") + size("qk_rope_head_dim") + size("v_head_dim")) * kBytes;
  return {{"mha", heads * per_head}, {"gqa_8", std::min(heads, kGroups) * per_head}};
}

// Of latents in FP8; null for models without latent attention.
ordered_json fp8_cache_bytes_per_token(const nlohmann::json& config) {
  const auto size = [&](const char* key) { return bounded_size(config, key); };
  const kernels::Fp8Entry entry{.rank = size("kv_lora_rank"), .rope = size("qk_rope_head_dim")};
  if (entry.rank == 0) return nullptr;
  return size("num_hidden_layers") * entry.bytes();
}

void describe_cache(const nlohmann::json& config, ordered_json& into) {
  const ordered_json bytes = into["cache_bytes_per_token"] = cache_bytes_per_token(config);
  if (bytes.is_null()) return;
  if (const auto ordinary = cache_of_ordinary_attention(config); !ordinary.is_null()) {
    into["cache_bytes_per_token_without_latents"] = ordinary;
  }
  if (const auto fp8 = fp8_cache_bytes_per_token(config); !fp8.is_null()) into["cache_bytes_per_token_fp8"] = fp8;
}

// Runs `body`, which fills in one part; its error stands in for the part and becomes a problem of the whole.
template <typename Body>
void attempt(ordered_json& into, const char* part, Body&& body) {
  into[part] = nullptr;
  try {
    body();
  } catch (const core::Error& error) {
    into[part] = {{"error", error.what()}};
    into["problems"].push_back(error.what());
  }
}

void describe_chat_template(const ModelFiles& files, ordered_json& into) {
  try {
    const auto chat_template = files.chat_template();
    if (!chat_template) return;
    into = {{"family", chat_template->family()}, {"fingerprint", chat_template->fingerprint()}};
  } catch (const core::Error& error) {
    into = {{"family", nullptr}, {"note", error.what()}};
  }
}

void describe_text(const ModelFiles& files, ordered_json& into) {
  attempt(into, "tokenizer", [&] {
    if (files.gguf() ? files.gguf()->has("tokenizer.ggml.tokens") : fs::exists(files.path() / kTokenizer)) {
      into["tokenizer"] = describe_tokenizer(*files.tokenizer());
    }
  });
  attempt(into, "chat_template", [&] { describe_chat_template(files, into["chat_template"]); });
  attempt(into, "eos_token_ids", [&] { into["eos_token_ids"] = files.eos_token_ids(); });
}

void describe_model(const ModelFiles& files, const DescribeOptions& options, ordered_json& into) {
  const nlohmann::json& config = files.config();
  into["model_type"] = config.value("model_type", nlohmann::json());
  into["config"] = config;
  describe_cache(config, into);
  attempt(into, "weights", [&] {
    if (files.gguf()) {
      describe_weights(*files.gguf(), options, into);  // as the file names and stores them
    } else if (fs::exists(files.path() / kSafetensorsIndex) || fs::exists(files.path() / kSafetensorsSingle)) {
      describe_weights(*files.weights(), options, into);
    }
  });
  if (!files.gguf() || gguf_architecture_supported(files.gguf()->text("general.architecture"))) {
    describe_text(files, into);
  }
}

ordered_json describe_metadata(const GgufFile& file) {
  ordered_json metadata = ordered_json::object();
  for (const auto& [key, value] : file.metadata()) {
    switch (value.type) {
      case gguf::ValueType::kArray:
        metadata[key] = {{"array_of", gguf::name(value.element_type)}, {"count", value.count}};
        break;
      case gguf::ValueType::kString:
        metadata[key] = file.text(key);
        break;
      case gguf::ValueType::kBool:
        metadata[key] = file.boolean(key);
        break;
      case gguf::ValueType::kFloat32:
        metadata[key] = static_cast<float>(file.number(key));
        break;
      case gguf::ValueType::kFloat64:
        metadata[key] = file.number(key);
        break;
      default:
        metadata[key] = file.integer(key);
    }
  }
  return metadata;
}

// Not every GGUF file is a model: there are adapters, tokenizers and pieces of split models.
ordered_json describe_gguf(const fs::path& path, const DescribeOptions& options) {
  const auto file = GgufFile::open(path);
  ordered_json result{{"kind", "gguf"}, {"path", path.string()}, {"version", file->version()}};
  attempt(result, "config", [&] { describe_model(ModelFiles::open(path), options, result); });
  if (!result.contains("weights")) describe_weights(*file, options, result);
  attempt(result, "metadata", [&] { result["metadata"] = describe_metadata(*file); });
  return result;
}

std::vector<std::string> checkpoints_in(const fs::path& run) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(run)) {
    if (fs::exists(entry.path() / "config.json")) names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

ordered_json describe_json(const fs::path& path, const DescribeOptions& options) {
  const nlohmann::json content = core::read_json_file(path);
  if (content.is_object() && content.contains("weight_map")) {
    ordered_json result{{"kind", "safetensors"}, {"path", path.string()}};
    describe_weights(*open_safetensors(path), options, result);
    return result;
  }
  if (content.is_object() && content.contains("model") && content["model"].is_object()) {
    ordered_json result{{"kind", "tokenizer"}, {"path", path.string()}};
    result["tokenizer"] = describe_tokenizer(*Tokenizer::from_json_file(path));
    return result;
  }
  if (content.is_object() && content.contains("model_type")) {
    core::fail("{}: a model's configuration; inspect the directory it lies in", path.string());
  }
  core::fail("{}: JSON, but neither a tokenizer nor an index of safetensors", path.string());
}

ordered_json describe_traces(const fs::path& path) {
  const auto reader = TraceReader::open(path);
  uint64_t bytes = 0;
  for (const auto& shard : reader.shards()) bytes += shard->file_bytes();
  return {{"kind", "traces"},
          {"path", path.string()},
          {"shards", reader.shards().size()},
          {"documents", reader.size()},
          {"prompt_tokens", reader.prompt_tokens()},
          {"completion_tokens", reader.completion_tokens()},
          {"bytes", bytes},
          {"provenance", reader.provenance().to_json()}};
}

bool holds_shards(const fs::path& directory) {
  return std::ranges::any_of(fs::directory_iterator(directory),
                             [](const auto& entry) { return entry.path().extension() == kShard; });
}

ordered_json describe_directory(const fs::path& path, const DescribeOptions& options) {
  if (fs::exists(path / "config.json")) {
    ordered_json result{{"kind", "model"}, {"path", path.string()}};
    describe_model(ModelFiles::open(path), options, result);
    return result;
  }
  if (fs::exists(path / "latest")) {
    const auto newest = ModelFiles::open(path);
    ordered_json result{{"kind", "run"},
                        {"path", path.string()},
                        {"checkpoints", checkpoints_in(path)},
                        {"latest", newest.path().filename().string()}};
    describe_model(newest, options, result);
    return result;
  }
  if (fs::exists(path / kSafetensorsIndex) || fs::exists(path / kSafetensorsSingle)) {
    ordered_json result{{"kind", "safetensors"}, {"path", path.string()}};
    describe_weights(*open_safetensors(path), options, result);
    return result;
  }
  if (holds_shards(path)) return describe_traces(path);
  if (fs::exists(path / kTokenizer)) return describe_json(path / kTokenizer, options);
  core::fail("{}: nothing known in this directory: no config.json (a model), no latest (a run), no {}, no *{} (traces)",
             path.string(), kSafetensorsSingle, kShard);
}

std::string first_bytes(const fs::path& path, size_t count) {
  std::string bytes(count, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(bytes.data(), static_cast<std::streamsize>(count));
  bytes.resize(static_cast<size_t>(file.gcount()));
  return bytes;
}

}  // namespace

ordered_json describe_file(const fs::path& path, const DescribeOptions& options) {
  core::check(fs::exists(path), "{}: no such file or directory", path.string());
  if (fs::is_directory(path)) return describe_directory(path, options);
  if (path.extension() == ".gguf" || first_bytes(path, 4) == "GGUF") return describe_gguf(path, options);
  if (path.extension() == kShard) return describe_traces(path);
  if (path.extension() == ".json") return describe_json(path, options);
  if (path.extension() == ".safetensors") {
    const auto file = SafetensorsFile::open(path);
    ordered_json result{{"kind", "safetensors"}, {"path", path.string()}, {"metadata", file->metadata()}};
    describe_weights(*file, options, result);
    return result;
  }
  core::fail("{}: not a file that distill knows (safetensors, GGUF, traces, tokenizer.json)", path.string());
}

}  // namespace distill::data
