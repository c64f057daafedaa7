#include "data/gguf_config.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "data/gguf_rope_scaling.h"

namespace distill::data {
namespace {

using nlohmann::json;

struct Architecture {
  std::string_view name;  // in GGUF and as "model_type"
  std::string_view class_name;
};

constexpr std::array<Architecture, 3> kArchitectures{{
    {"llama", "LlamaForCausalLM"},
    {"qwen2", "Qwen2ForCausalLM"},
    {"qwen3", "Qwen3ForCausalLM"},
}};

const Architecture* find_architecture(std::string_view name) {
  const auto it = std::ranges::find(kArchitectures, name, &Architecture::name);
  return it != kArchitectures.end() ? &*it : nullptr;
}

// Reads the keys of one architecture.
class Translator {
 public:
  Translator(const GgufFile& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)), strict_(gguf_architecture_supported(architecture_)) {}

  std::string key(std::string_view name) const { return fmt::format("{}.{}", architecture_, name); }
  bool has(std::string_view name) const { return file_.has(key(name)); }

  // A size above zero. Without the key: nothing, unless a supported architecture requires it.
  std::optional<int64_t> size(std::string_view name, bool required = false) const {
    if (!has(name) && !(required && strict_)) return std::nullopt;
    // Other architectures may have one value per layer where these have one.
    if (!strict_ && file_.metadata(key(name))->type == gguf::ValueType::kArray) return std::nullopt;
    const int64_t value = file_.integer(key(name));
    core::check(value > 0 && value <= INT32_MAX, "{}: key '{}': {} makes no sense", file_.location(), key(name), value);
    return value;
  }

  std::optional<double> number(std::string_view name) const {
    if (!has(name)) return std::nullopt;
    double value = file_.number(key(name));
    core::check(std::isfinite(value) && value > 0, "{}: key '{}': {} makes no sense", file_.location(), key(name),
                value);
    // The shortest decimal that rounds to the stored float, so that 1e-5 does not become 9.999999747378752e-06.
    if (file_.metadata(key(name))->type == gguf::ValueType::kFloat32) {
      value = std::stod(fmt::format("{}", static_cast<float>(value)));
    }
    return value;
  }

  [[noreturn]] void reject(std::string_view name, std::string_view message) const {
    core::fail("{}: key '{}': {}", file_.location(), key(name), message);
  }

  const GgufFile& file() const { return file_; }
  const std::string& architecture() const { return architecture_; }
  bool strict() const { return strict_; }

 private:
  const GgufFile& file_;
  std::string architecture_;
  bool strict_;
};

void put(json& config, const char* key, const auto& value) {
  if (value) config[key] = *value;
}

void translate_sizes(const Translator& from, json& config) {
  put(config, "num_hidden_layers", from.size("block_count", true));
  put(config, "hidden_size", from.size("embedding_length", true));
  put(config, "intermediate_size", from.size("feed_forward_length", true));
  put(config, "max_position_embeddings", from.size("context_length", true));

  const auto heads = from.size("attention.head_count", true);
  put(config, "num_attention_heads", heads);
  const auto kv_heads = from.size("attention.head_count_kv");
  put(config, "num_key_value_heads", kv_heads ? kv_heads : heads);
  if (from.strict() && kv_heads && *heads % *kv_heads != 0) {
    from.reject("attention.head_count_kv", fmt::format("{} heads do not share {}", *heads, *kv_heads));
  }

  auto head_dim = from.size("attention.key_length");
  if (!head_dim && heads && config.contains("hidden_size")) head_dim = config["hidden_size"].get<int64_t>() / *heads;
  if (from.strict() && *head_dim == 0) from.reject("attention.head_count", "there are more heads than hidden values");
  put(config, "head_dim", head_dim);
  const auto value_dim = from.size("attention.value_length");
  if (from.strict() && value_dim && *value_dim != *head_dim) {
    from.reject("attention.value_length",
                fmt::format("values of size {} beside keys of size {}", *value_dim, *head_dim));
  }
  const auto rotated = from.size("rope.dimension_count");
  if (from.strict() && rotated && *rotated > *head_dim) {
    from.reject("rope.dimension_count", fmt::format("{} exceeds the head's size {}", *rotated, *head_dim));
  }
  if (rotated && head_dim && *rotated < *head_dim) {
    config["partial_rotary_factor"] = static_cast<double>(*rotated) / static_cast<double>(*head_dim);
  }

  // The embedding decides: "vocab_size" is often missing and does not count the rows that pad a vocabulary.
  const TensorInfo* embedding = from.file().find("token_embd.weight");
  if (embedding != nullptr && embedding->shape.size() == 2) {
    config["vocab_size"] = embedding->shape[0];
  } else {
    put(config, "vocab_size", from.size("vocab_size"));
  }
}

// "rope_scaling" from the keys under "rope.scaling", or null.
json scaling_from_keys(const Translator& from) {
  if (!from.has("rope.scaling.type")) {
    const auto factor = from.number("rope.scale_linear");  // how files before September 2023 say it
    return factor && *factor != 1 ? json{{"rope_type", "linear"}, {"factor", *factor}} : json();
  }
  const std::string type = from.file().text(from.key("rope.scaling.type"));
  if (type == "none") return nullptr;
  const auto factor = from.number("rope.scaling.factor");
  if (type == "linear") return {{"rope_type", "linear"}, {"factor", factor.value_or(1)}};
  if (type != "yarn") from.reject("rope.scaling.type", fmt::format("\"{}\" is not supported", type));

  json scaling{{"rope_type", "yarn"}, {"factor", factor.value_or(1)}};
  put(scaling, "original_max_position_embeddings", from.size("rope.scaling.original_context_length"));
  put(scaling, "beta_fast", from.number("rope.scaling.yarn_beta_fast"));
  put(scaling, "beta_slow", from.number("rope.scaling.yarn_beta_slow"));
  // llama.cpp multiplies YaRN's own attention factor by this one; Hugging Face's key replaces it.
  const auto attention = from.number("rope.scaling.attn_factor");
  if (attention && *attention != 1) {
    scaling["attention_factor"] = *attention * (0.1 * std::log(std::max(1.0, factor.value_or(1))) + 1);
  }
  return scaling;
}

void translate_rope(const Translator& from, json& config) {
  const double theta = from.number("rope.freq_base").value_or(10000.0);
  config["rope_theta"] = theta;
  json scaling = from.strict() ? scaling_from_keys(from) : json();
  constexpr const char* kFactors = "rope_freqs.weight";
  if (from.strict() && scaling.is_null() && from.file().find(kFactors) != nullptr) {
    scaling = core::with_context(fmt::format("{}: tensor '{}'", from.file().location(), kFactors), [&] {
      const at::Tensor factors = from.file().load_fp32(kFactors).contiguous();
      const int64_t frequencies = config["head_dim"].get<int64_t>() / 2;
      core::check(factors.numel() == frequencies, "it has {} factors for {} frequencies", factors.numel(), frequencies);
      return llama3_rope_scaling({factors.const_data_ptr<float>(), static_cast<size_t>(factors.numel())}, theta);
    });
  }
  if (!scaling.is_null()) config["rope_scaling"] = std::move(scaling);
}

void translate_tokens(const Translator& from, json& config) {
  const auto id = [&](std::string_view name) -> std::optional<int64_t> {
    const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
    if (!from.file().has(key)) return std::nullopt;
    const int64_t value = from.file().integer(key);
    core::check(value >= 0 && value <= INT32_MAX, "{}: key '{}': {} is not a token", from.file().location(), key,
                value);
    return value;
  };
  put(config, "bos_token_id", id("bos"));
  put(config, "pad_token_id", id("padding"));
  // End of text, of a turn and of a message: generation ends at each.
  std::vector<int64_t> ends;
  for (const auto name : {"eos", "eot", "eom"}) {
    if (const auto end = id(name); end && std::ranges::find(ends, *end) == ends.end()) ends.push_back(*end);
  }
  if (ends.size() == 1) config["eos_token_id"] = ends[0];
  if (ends.size() > 1) config["eos_token_id"] = ends;
}

}  // namespace

bool gguf_architecture_supported(std::string_view architecture) {
  return find_architecture(architecture) != nullptr;
}

json gguf_config(const GgufFile& file) {
  constexpr std::string_view kSplitCount = "split.count";
  core::check(!file.has(kSplitCount) || file.integer(kSplitCount) <= 1,
              "{}: one of {} pieces of a model; join them with `llama-gguf-split --merge` first", file.location(),
              file.has(kSplitCount) ? file.integer(kSplitCount) : 1);
  const Translator from(file, file.text("general.architecture"));
  json config{{"model_type", from.architecture()}};
  translate_sizes(from, config);
  translate_rope(from, config);
  translate_tokens(from, config);
  put(config, "rms_norm_eps", from.number("attention.layer_norm_rms_epsilon"));
  config["tie_word_embeddings"] = file.find("output.weight") == nullptr;

  // Mixtral shares llama's name there.
  if (from.architecture() == "llama" && from.has("expert_count") && file.integer(from.key("expert_count")) > 0) {
    config["model_type"] = "mixtral";
    return config;
  }
  if (!from.strict()) return config;

  core::check(config.contains("rms_norm_eps"), "{}: there is no key '{}'", file.location(),
              from.key("attention.layer_norm_rms_epsilon"));
  core::check(config.contains("vocab_size"), "{}: there is no tensor 'token_embd.weight' of two dimensions",
              file.location());
  config["architectures"] = {find_architecture(from.architecture())->class_name};
  config["hidden_act"] = "silu";
  config["attention_bias"] = file.find("blk.0.attn_q.bias") != nullptr;
  config["mlp_bias"] = file.find("blk.0.ffn_gate.bias") != nullptr;
  if (const auto window = from.size("attention.sliding_window")) {
    config["sliding_window"] = *window;
    config["use_sliding_window"] = true;
    config["max_window_layers"] = 0;  // Qwen's key for the first layer that has the window
  }
  return config;
}

}  // namespace distill::data
