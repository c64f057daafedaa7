#include "student/dense_config.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/config.h"
#include "core/error.h"
#include "student/dense_weights.h"

namespace distill::student {
namespace {

using core::ConfigReader;

enum class Windows { kNone, kEveryLayer, kByLayer };

// What a family has, and what transformers 5.23 takes for keys its config.json leaves out (0: see derive_* below).
struct Family {
  std::string_view model_type, architecture;
  bool qkv_bias;            // always
  bool attention_bias_key;  // "attention_bias": q, k, v and the output projection
  bool mlp_bias_key;
  bool qk_norm;
  Windows windows;
  int64_t default_kv_heads;
  int64_t default_head_dim;
  int64_t default_max_positions;
};

constexpr std::array<Family, 4> kFamilies{{
    {.model_type = "llama",
     .architecture = "LlamaForCausalLM",
     .qkv_bias = false,
     .attention_bias_key = true,
     .mlp_bias_key = true,
     .qk_norm = false,
     .windows = Windows::kNone,
     .default_kv_heads = 0,
     .default_head_dim = 0,
     .default_max_positions = 2048},
    {.model_type = "qwen2",
     .architecture = "Qwen2ForCausalLM",
     .qkv_bias = true,
     .attention_bias_key = false,
     .mlp_bias_key = false,
     .qk_norm = false,
     .windows = Windows::kByLayer,
     .default_kv_heads = 32,
     .default_head_dim = 0,
     .default_max_positions = 32768},
    {.model_type = "qwen3",
     .architecture = "Qwen3ForCausalLM",
     .qkv_bias = false,
     .attention_bias_key = true,
     .mlp_bias_key = false,
     .qk_norm = true,
     .windows = Windows::kByLayer,
     .default_kv_heads = 32,
     .default_head_dim = 128,
     .default_max_positions = 32768},
    {.model_type = "mistral",
     .architecture = "MistralForCausalLM",
     .qkv_bias = false,
     .attention_bias_key = false,
     .mlp_bias_key = false,
     .qk_norm = false,
     .windows = Windows::kEveryLayer,
     .default_kv_heads = 8,
     .default_head_dim = 0,
     .default_max_positions = 131072},
}};

constexpr int64_t kLargestModel = int64_t{1} << 41;  // parameters; beyond it a size is damage, not design
constexpr int64_t kDefaultWindow = 4096;             // of Qwen and Mistral where the key is missing

const Family* find_family(std::string_view model_type) {
  const auto* const it = std::ranges::find(kFamilies, model_type, &Family::model_type);
  return it == kFamilies.end() ? nullptr : it;
}

// An integer in [1, limit].
int64_t size_of(ConfigReader& config, std::string_view key, int64_t limit, std::optional<int64_t> fallback = {}) {
  const int64_t size = fallback ? config.get<int64_t>(key, *fallback) : config.require<int64_t>(key);
  if (size < 1 || size > limit) config.reject(key, fmt::format("{} is not between 1 and {}", size, limit));
  return size;
}

void refuse_unsupported(ConfigReader& config) {
  const auto activation = config.get<std::string>("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    config.reject("hidden_act", fmt::format("\"{}\" is not supported, only silu", activation));
  }
  if (config.section("quantization_config").find<std::string>("quant_method")) {
    config.reject("quantization_config",
                  "quantised checkpoints are not supported; use one in bf16 or fp32, or a GGUF file");
  }
}

void parse_heads(ConfigReader& config, const Family& family, DenseConfig& model) {
  constexpr int64_t kMostHeads = 1 << 14;
  model.num_heads = size_of(config, "num_attention_heads", kMostHeads);
  // In transformers a null means as many as query heads, a missing key the family's default.
  const bool derived = family.default_kv_heads == 0 || config.contains("num_key_value_heads");
  model.num_kv_heads =
      size_of(config, "num_key_value_heads", kMostHeads, derived ? model.num_heads : family.default_kv_heads);
  if (model.num_heads % model.num_kv_heads != 0) {
    config.reject("num_key_value_heads",
                  fmt::format("{} does not divide num_attention_heads, {}", model.num_kv_heads, model.num_heads));
  }
  if (auto head_dim = config.find<int64_t>("head_dim")) {
    model.head_dim = *head_dim;
  } else if (family.default_head_dim > 0) {
    model.head_dim = family.default_head_dim;
  } else {
    if (model.hidden_size % model.num_heads != 0) {
      config.reject("num_attention_heads", fmt::format("{} does not divide hidden_size, {}, and head_dim is missing",
                                                       model.num_heads, model.hidden_size));
    }
    model.head_dim = model.hidden_size / model.num_heads;
  }
  constexpr int64_t kLargestHead = 1 << 13;
  if (model.head_dim < 2 || model.head_dim > kLargestHead || model.head_dim % 2 != 0) {
    config.reject("head_dim", fmt::format("{} is not an even number between 2 and {}", model.head_dim, kLargestHead));
  }
}

// The window in tokens, 0 if none.
int64_t parse_window(ConfigReader& config) {
  if (config.contains("sliding_window") && !config.find<int64_t>("sliding_window")) return 0;  // null
  return size_of(config, "sliding_window", std::numeric_limits<int32_t>::max(), kDefaultWindow);
}

std::vector<int64_t> parse_windows(ConfigReader& config, const Family& family, int64_t layers) {
  std::vector<int64_t> windows(static_cast<size_t>(layers), 0);
  if (family.windows == Windows::kNone) return windows;
  if (family.windows == Windows::kEveryLayer) {
    std::ranges::fill(windows, parse_window(config));
    return windows;
  }
  const int64_t window = config.get<bool>("use_sliding_window", false) ? parse_window(config) : 0;
  if (const auto types = config.find<std::vector<std::string>>("layer_types")) {
    if (types->size() != windows.size()) {
      config.reject("layer_types", fmt::format("has {} entries for {} layers", types->size(), layers));
    }
    for (size_t i = 0; i < windows.size(); ++i) {
      const std::string& type = (*types)[i];
      if (type != "full_attention" && type != "sliding_attention") {
        config.reject("layer_types", fmt::format("\"{}\" is not supported", type));
      }
      if (type == "sliding_attention") windows[i] = window;
    }
    return windows;
  }
  const int64_t first = config.get<int64_t>("max_window_layers", 28);
  if (first < 0) config.reject("max_window_layers", fmt::format("{} is negative", first));
  std::fill(windows.begin() + std::min(first, layers), windows.end(), window);
  return windows;
}

DenseConfig parse(ConfigReader& config) {
  DenseConfig model;
  model.model_type = config.require<std::string>("model_type");
  const Family* family = find_family(model.model_type);
  if (family == nullptr) {
    config.reject("model_type", fmt::format("\"{}\" is not a dense model known here: llama, qwen2, qwen3 or mistral",
                                            model.model_type));
  }
  refuse_unsupported(config);
  model.vocab_size = size_of(config, "vocab_size", 1 << 24);
  model.hidden_size = size_of(config, "hidden_size", 1 << 18);
  model.intermediate_size = size_of(config, "intermediate_size", 1 << 21);
  model.num_layers = size_of(config, "num_hidden_layers", 1 << 12);
  parse_heads(config, *family, model);
  model.max_positions = size_of(config, "max_position_embeddings", 1 << 28, family->default_max_positions);
  model.norm_eps = config.get<double>("rms_norm_eps", model.norm_eps);
  if (!(model.norm_eps >= 0 && model.norm_eps < 1)) config.reject("rms_norm_eps", "is not between 0 and 1");
  model.initializer_range = config.get<double>("initializer_range", model.initializer_range);
  if (!(model.initializer_range >= 0 && model.initializer_range <= 1)) {
    config.reject("initializer_range", "is not between 0 and 1");
  }
  const bool attention_bias = family->attention_bias_key && config.get<bool>("attention_bias", false);
  model.qkv_bias = family->qkv_bias || attention_bias;
  model.output_bias = attention_bias;
  model.mlp_bias = family->mlp_bias_key && config.get<bool>("mlp_bias", false);
  model.qk_norm = family->qk_norm;
  model.tie_embeddings = config.get<bool>("tie_word_embeddings", false);
  model.rotary = nn::parse_rotary_scaling(config, model.max_positions);
  model.windows = parse_windows(config, *family, model.num_layers);
  if (model.parameter_count() > kLargestModel) {
    config.reject("hidden_size",
                  fmt::format("the sizes given make {:.1e} parameters", static_cast<double>(model.parameter_count())));
  }
  return model;
}

}  // namespace

nn::ModelShape DenseConfig::shape() const {
  return {
      .vocab_size = vocab_size, .hidden_size = hidden_size, .num_layers = num_layers, .max_positions = max_positions};
}

int64_t DenseConfig::parameter_count() const {
  // Cannot overflow within the limits of parse(): at most 2^12 layers of about 2^42.
  const int64_t attention = hidden_size * head_dim * (2 * num_heads + 2 * num_kv_heads) +
                            (qkv_bias ? head_dim * (num_heads + 2 * num_kv_heads) : 0) +
                            (output_bias ? hidden_size : 0) + (qk_norm ? 2 * head_dim : 0);
  const int64_t mlp = 3 * hidden_size * intermediate_size + (mlp_bias ? 2 * intermediate_size + hidden_size : 0);
  const int64_t embeddings = vocab_size * hidden_size * (tie_embeddings ? 1 : 2);
  return embeddings + num_layers * (attention + mlp + 2 * hidden_size) + hidden_size;
}

bool is_dense_model_type(const std::string& model_type) {
  return find_family(model_type) != nullptr;
}

DenseConfig parse_dense_config(const nlohmann::json& config, const std::string& location) {
  try {
    ConfigReader reader(config, location);
    return parse(reader);
  } catch (const core::UsageError& error) {
    throw core::Error(error.what());  // a damaged model is not a mistake on the command line
  }
}

nlohmann::json dense_config_to_json(const DenseConfig& config) {
  const Family* family = find_family(config.model_type);
  core::check(family != nullptr, "\"{}\" is not a dense model type", config.model_type);
  nlohmann::json json{
      {"architectures", {std::string(family->architecture)}},
      {"model_type", config.model_type},
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"num_hidden_layers", config.num_layers},
      {"num_attention_heads", config.num_heads},
      {"num_key_value_heads", config.num_kv_heads},
      {"head_dim", config.head_dim},
      {"max_position_embeddings", config.max_positions},
      {"rms_norm_eps", config.norm_eps},
      {"initializer_range", config.initializer_range},
      {"hidden_act", "silu"},
      {"tie_word_embeddings", config.tie_embeddings},
  };
  if (family->attention_bias_key) json["attention_bias"] = config.output_bias;
  if (family->mlp_bias_key) json["mlp_bias"] = config.mlp_bias;
  nn::write_rotary_scaling(config.rotary, json);
  if (family->windows == Windows::kNone) return json;
  const int64_t window = config.windows.empty() ? 0 : std::ranges::max(config.windows);
  json["sliding_window"] = window > 0 ? nlohmann::json(window) : nlohmann::json(nullptr);
  if (family->windows == Windows::kEveryLayer) return json;
  json["use_sliding_window"] = window > 0;
  auto types = nlohmann::json::array();
  for (const int64_t layer : config.windows) types.push_back(layer > 0 ? "sliding_attention" : "full_attention");
  json["layer_types"] = types;
  return json;
}

}  // namespace distill::student
