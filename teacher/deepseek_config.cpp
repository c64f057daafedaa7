#include "teacher/deepseek_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <vector>

#include "core/config.h"
#include "core/error.h"
#include "kernels/fp8/stored_weight.h"

namespace distill::teacher {
namespace {

using core::ConfigReader;
using kernels::GroupScoring;
using kernels::RouterScoring;

// What a family's config.json leaves out means.
struct Family {
  std::string_view model_type, scoring, topk_method;
  bool normalise;
};

constexpr std::array<Family, 3> kFamilies{{
    {.model_type = "deepseek_v2", .scoring = "softmax", .topk_method = "greedy", .normalise = false},
    {.model_type = "deepseek_v3", .scoring = "sigmoid", .topk_method = "noaux_tc", .normalise = true},
    {.model_type = "kimi_k2", .scoring = "sigmoid", .topk_method = "noaux_tc", .normalise = true},
}};

// Beyond these a size is damage, not design. Products of sizes within them don't overflow.
constexpr int64_t kMostExperts = 1 << 14;
constexpr int64_t kMostLayers = 1 << 12;
constexpr int64_t kLargestWidth = 1 << 20;

const Family* find_family(std::string_view model_type) {
  const auto* const it = std::ranges::find(kFamilies, model_type, &Family::model_type);
  return it == kFamilies.end() ? nullptr : it;
}

int64_t in_range(ConfigReader& config, std::string_view key, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    config.reject(key, fmt::format("{} is not between {} and {}", value, least, most));
  }
  return value;
}

int64_t require_size(ConfigReader& config, std::string_view key, int64_t most = kLargestWidth) {
  return in_range(config, key, config.require<int64_t>(key), 1, most);
}

void refuse_unsupported(ConfigReader& config) {
  const auto activation = config.get<std::string>("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    config.reject("hidden_act", fmt::format("\"{}\" is not supported, only silu", activation));
  }
  if (config.get<bool>("mlp_bias", false)) config.reject("mlp_bias", "MLPs with biases are not supported");
}

bool parse_quantisation(ConfigReader& config) {
  ConfigReader section = config.section("quantization_config");
  const auto method = section.find<std::string>("quant_method");
  if (!method) return false;
  if (*method != "fp8") section.reject("quant_method", fmt::format("\"{}\" is not supported, only fp8", *method));
  const auto format = section.get<std::string>("fmt", "e4m3");
  if (format != "e4m3") section.reject("fmt", fmt::format("\"{}\" is not supported, only e4m3", format));
  const std::vector<int64_t> expected{kernels::kScaleBlock, kernels::kScaleBlock};
  if (section.get<std::vector<int64_t>>("weight_block_size", expected) != expected) {
    section.reject("weight_block_size", fmt::format("only [{0}, {0}] is supported", kernels::kScaleBlock));
  }
  return true;
}

// YaRN sharpens attention once in the rotations and once more here (DeepSeek's "mscale_all_dim").
double softmax_scale(ConfigReader& config, const nn::RotaryScaling& rotary, int64_t query_dim) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(query_dim));
  if (rotary.kind == nn::RotaryKind::kDefault || rotary.factor <= 1) return scale;
  ConfigReader section = nn::rotary_section(config);
  const double mscale = section.get<double>("mscale_all_dim", 0);
  if (!(std::abs(mscale) <= 1e3)) section.reject("mscale_all_dim", fmt::format("{} is not a sensible value", mscale));
  const double attention = mscale == 0 ? 1 : 0.1 * mscale * std::log(rotary.factor) + 1;
  return scale * attention * attention;
}

MlaConfig parse_attention(ConfigReader& config, const nn::RotaryScaling& rotary) {
  MlaConfig attention;
  attention.num_heads = require_size(config, "num_attention_heads", 1 << 14);
  const int64_t kv_heads = config.get<int64_t>("num_key_value_heads", attention.num_heads);
  if (kv_heads != attention.num_heads) {
    config.reject("num_key_value_heads",
                  fmt::format("{} differs from num_attention_heads, {}; latent attention has as many of both", kv_heads,
                              attention.num_heads));
  }
  if (const auto rank = config.find<int64_t>("q_lora_rank")) {
    attention.query_rank = in_range(config, "q_lora_rank", *rank, 1, kLargestWidth);
  }
  attention.latent_rank = require_size(config, "kv_lora_rank");
  attention.nope_dim = require_size(config, "qk_nope_head_dim", 1 << 14);
  attention.rope_dim = require_size(config, "qk_rope_head_dim", 1 << 14);
  if (attention.rope_dim % 2 != 0) config.reject("qk_rope_head_dim", fmt::format("{} is odd", attention.rope_dim));
  attention.value_dim = require_size(config, "v_head_dim", 1 << 14);
  attention.bias = config.get<bool>("attention_bias", false);
  attention.interleaved = config.get<bool>("rope_interleave", true);
  attention.softmax_scale = softmax_scale(config, rotary, attention.query_dim());
  return attention;
}

void parse_scoring(ConfigReader& config, const Family& family, MoeConfig& moe) {
  const auto scoring = config.get<std::string>("scoring_func", std::string(family.scoring));
  if (scoring == "softmax") {
    moe.router.scoring = RouterScoring::kSoftmax;
  } else if (scoring == "sigmoid") {
    moe.router.scoring = RouterScoring::kSigmoid;
  } else {
    config.reject("scoring_func", fmt::format("\"{}\" is not supported; known are sigmoid and softmax", scoring));
  }
  const auto method = config.get<std::string>("topk_method", std::string(family.topk_method));
  const bool grouped = method == "noaux_tc" || method == "group_limited_greedy";
  if (!grouped && method != "greedy") {
    config.reject("topk_method",
                  fmt::format("\"{}\" is not supported; known are noaux_tc, group_limited_greedy and greedy", method));
  }
  moe.correction_bias = method == "noaux_tc";
  moe.router.group_scoring = method == "noaux_tc" ? GroupScoring::kTwoLargest : GroupScoring::kMaximum;
  if (!grouped) return;
  moe.router.groups = in_range(config, "n_group", config.require<int64_t>("n_group"), 1, moe.routed_experts);
  if (moe.routed_experts % moe.router.groups != 0) {
    config.reject("n_group",
                  fmt::format("{} does not divide n_routed_experts, {}", moe.router.groups, moe.routed_experts));
  }
  moe.router.groups_per_token =
      in_range(config, "topk_group", config.require<int64_t>("topk_group"), 1, moe.router.groups);
}

MoeConfig parse_experts(ConfigReader& config, const Family& family) {
  MoeConfig moe;
  moe.routed_experts =
      in_range(config, "n_routed_experts", config.get<int64_t>("n_routed_experts", 0), 0, kMostExperts);
  if (moe.routed_experts == 0) return moe;
  moe.shared_experts =
      in_range(config, "n_shared_experts", config.get<int64_t>("n_shared_experts", 0), 0, kMostExperts);
  moe.intermediate_size = require_size(config, "moe_intermediate_size");
  moe.first_layer =
      in_range(config, "first_k_dense_replace", config.require<int64_t>("first_k_dense_replace"), 0, kMostLayers);
  moe.layer_interval = in_range(config, "moe_layer_freq", config.get<int64_t>("moe_layer_freq", 1), 1, kMostLayers);
  parse_scoring(config, family, moe);
  const int64_t choice = moe.routed_experts / moe.router.groups * moe.router.groups_per_token;
  moe.router.experts_per_token =
      in_range(config, "num_experts_per_tok", config.require<int64_t>("num_experts_per_tok"), 1, choice);
  moe.router.normalise = config.get<bool>("norm_topk_prob", family.normalise);
  moe.router.scaling = config.require<double>("routed_scaling_factor");
  if (!(moe.router.scaling > 0 && moe.router.scaling <= 1e6)) {
    config.reject("routed_scaling_factor", fmt::format("{} is not a sensible value", moe.router.scaling));
  }
  return moe;
}

DeepseekConfig parse(ConfigReader& config) {
  DeepseekConfig model;
  model.model_type = config.require<std::string>("model_type");
  const Family* family = find_family(model.model_type);
  if (family == nullptr) {
    config.reject("model_type",
                  fmt::format("\"{}\" is not known here: deepseek_v2, deepseek_v3 or kimi_k2", model.model_type));
  }
  refuse_unsupported(config);
  model.vocab_size = require_size(config, "vocab_size", 1 << 24);
  model.hidden_size = require_size(config, "hidden_size");
  model.intermediate_size = require_size(config, "intermediate_size");
  model.num_layers = require_size(config, "num_hidden_layers", kMostLayers);
  model.mtp_layers =
      in_range(config, "num_nextn_predict_layers", config.get<int64_t>("num_nextn_predict_layers", 0), 0, 64);
  model.max_positions = require_size(config, "max_position_embeddings", 1 << 28);
  model.norm_eps = config.get<double>("rms_norm_eps", model.norm_eps);
  if (!(model.norm_eps >= 0 && model.norm_eps < 1)) config.reject("rms_norm_eps", "is not between 0 and 1");
  model.tie_embeddings = config.get<bool>("tie_word_embeddings", false);
  model.fp8 = parse_quantisation(config);
  model.rotary = nn::parse_rotary_scaling(config, model.max_positions);
  model.attention = parse_attention(config, model.rotary);
  model.moe = parse_experts(config, *family);
  return model;
}

}  // namespace

nn::ModelShape DeepseekConfig::shape() const {
  return {
      .vocab_size = vocab_size, .hidden_size = hidden_size, .num_layers = num_layers, .max_positions = max_positions};
}

bool is_deepseek_model_type(const std::string& model_type) {
  return find_family(model_type) != nullptr;
}

DeepseekConfig parse_deepseek_config(const nlohmann::json& config, const std::string& location) {
  try {
    ConfigReader reader(config, location);
    return parse(reader);
  } catch (const core::UsageError& error) {
    throw core::Error(error.what());  // a damaged model is not a mistake on the command line
  }
}

}  // namespace distill::teacher
