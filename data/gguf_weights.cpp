#include "data/gguf_weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <optional>

#include "core/error.h"
#include "data/gguf_config.h"

namespace distill::data {
namespace {

struct Name {
  std::string_view gguf;
  std::string_view hugging_face;
};

// Outside the layers.
constexpr std::array<Name, 3> kModelNames{{
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
}};

// After "blk.N." and "model.layers.N."; each with .weight or .bias.
constexpr std::array<Name, 11> kLayerNames{{
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
}};

// Their content is in the config.
constexpr std::array<std::string_view, 1> kConfigTensors{"rope_freqs.weight"};

std::optional<std::string_view> look_up(std::span<const Name> names, std::string_view gguf) {
  const auto it = std::ranges::find(names, gguf, &Name::gguf);
  return it != names.end() ? std::optional(it->hugging_face) : std::nullopt;
}

// Nothing if the name is none of a dense decoder.
std::optional<std::string> hugging_face_name(std::string_view gguf) {
  const size_t dot = gguf.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view kind = gguf.substr(dot);  // ".weight"
  if (kind != ".weight" && kind != ".bias") return std::nullopt;
  std::string_view stem = gguf.substr(0, dot);
  constexpr std::string_view kLayer = "blk.";
  if (!stem.starts_with(kLayer)) {
    const auto name = look_up(kModelNames, stem);
    return name ? std::optional(fmt::format("{}{}", *name, kind)) : std::nullopt;
  }
  stem.remove_prefix(kLayer.size());
  const size_t digits = std::min(stem.find_first_not_of("0123456789"), stem.size());
  if (digits == 0 || digits == stem.size() || stem[digits] != '.') return std::nullopt;
  const auto name = look_up(kLayerNames, stem.substr(digits + 1));
  return name ? std::optional(fmt::format("model.layers.{}.{}{}", stem.substr(0, digits), *name, kind)) : std::nullopt;
}

// llama.cpp rotates neighbouring rows of a head where Hugging Face rotates row i with row i + head_dim / 2, so its
// converter interleaves the two halves of every head. This puts them back: [heads * head_dim, ...] to the same shape.
at::Tensor separate_halves(const at::Tensor& rows, int64_t heads) {
  const int64_t half = rows.size(0) / heads / 2;
  core::check(rows.size(0) == heads * half * 2, "its {} rows do not divide into {} heads of even size", rows.size(0),
              heads);
  return rows.reshape({heads, half, 2, -1}).transpose(1, 2).reshape(rows.sizes());
}

class GgufWeights final : public WeightSource {
 public:
  GgufWeights(std::shared_ptr<const GgufFile> file, const nlohmann::json& config)
      : file_(std::move(file)), interleaved_(config.at("model_type") == "llama") {
    const auto model_type = config.at("model_type").get<std::string>();
    core::check(gguf_architecture_supported(model_type),
                "{}: models of architecture {} are not supported (llama, qwen2 and qwen3 are)", location(), model_type);
    heads_ = config.at("num_attention_heads").get<int64_t>();
    kv_heads_ = config.at("num_key_value_heads").get<int64_t>();

    std::vector<std::pair<TensorInfo, const TensorInfo*>> renamed;
    for (const TensorInfo& stored : file_->tensors()) {
      if (std::ranges::find(kConfigTensors, stored.name) != kConfigTensors.end()) continue;
      const auto name = hugging_face_name(stored.name);
      core::check(name.has_value(), "{}: tensor '{}' has no place in a {} model", location(), stored.name, model_type);
      renamed.emplace_back(TensorInfo{*name, stored.dtype, stored.shape, stored.bytes}, &stored);
    }
    std::ranges::sort(renamed, {}, [](const auto& pair) -> const std::string& { return pair.first.name; });
    for (auto& [info, stored] : renamed) {
      tensors_.push_back(std::move(info));
      stored_.push_back(stored);
    }
  }

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  std::string location() const override { return file_->location(); }

  at::Tensor load(std::string_view name) const override { return in_order(name, file_->load(stored_name(name))); }

  std::optional<kernels::BlockWeight> load_blocks(std::string_view name) const override {
    auto blocks = file_->load_blocks(stored_name(name));
    if (!blocks) return std::nullopt;
    for (at::Tensor* rows : {&blocks->codes, &blocks->scales, &blocks->mins}) {
      if (rows->defined()) *rows = in_order(name, *rows);
    }
    return blocks;
  }

  std::string fingerprint() const override {
    return fingerprint_tensors([this](const TensorInfo& tensor) { return file_->bytes(stored_of(tensor)); });
  }

 private:
  const std::string& stored_name(std::string_view name) const {
    const TensorInfo* info = find(name);
    core::check(info != nullptr, "{}: there is no tensor '{}'", location(), name);
    return stored_of(*info).name;
  }

  // The rows of tensor `name` in Hugging Face's order.
  at::Tensor in_order(std::string_view name, const at::Tensor& rows) const {
    const bool query = name.find("self_attn.q_proj.") != std::string_view::npos;
    const bool key = name.find("self_attn.k_proj.") != std::string_view::npos;
    if (!interleaved_ || !(query || key)) return rows;
    return core::with_context(fmt::format("{}: tensor '{}'", location(), stored_name(name)),
                              [&] { return separate_halves(rows, query ? heads_ : kv_heads_); });
  }

  const TensorInfo& stored_of(const TensorInfo& tensor) const { return *stored_.at(&tensor - tensors_.data()); }

  std::shared_ptr<const GgufFile> file_;
  bool interleaved_;
  int64_t heads_ = 0;
  int64_t kv_heads_ = 0;
  std::vector<TensorInfo> tensors_;
  std::vector<const TensorInfo*> stored_;  // in the file, of the tensor with the same index
};

}  // namespace

std::shared_ptr<const WeightSource> open_gguf_weights(std::shared_ptr<const GgufFile> file,
                                                      const nlohmann::json& config) {
  return std::make_shared<GgufWeights>(std::move(file), config);
}

}  // namespace distill::data
