#include "student/initialise.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "student/dense_weights.h"

// Shapes: E hidden size, H query heads, K key-value heads, D head dimension, F intermediate size, V vocabulary.

namespace distill::student {
namespace {

void check_sizes(const DenseConfig& student, const DenseConfig& teacher) {
  const auto at_most = [](const char* key, int64_t size, int64_t teacher_size) {
    core::check(size <= teacher_size, "{}: the student's {} is above the teacher's {}", key, size, teacher_size);
  };
  at_most("hidden_size", student.hidden_size, teacher.hidden_size);
  at_most("intermediate_size", student.intermediate_size, teacher.intermediate_size);
  at_most("num_hidden_layers", student.num_layers, teacher.num_layers);
  at_most("num_attention_heads", student.num_heads, teacher.num_heads);
  at_most("head_dim", student.head_dim, teacher.head_dim);
  core::check(student.vocab_size == teacher.vocab_size, "vocab_size: the student's {} is not the teacher's {}",
              student.vocab_size, teacher.vocab_size);
  core::check(student.qk_norm == teacher.qk_norm, "model_type: {} normalises queries and keys, {} does not",
              student.qk_norm ? student.model_type : teacher.model_type,
              student.qk_norm ? teacher.model_type : student.model_type);
  if (student.rotary.theta != teacher.rotary.theta || student.rotary.kind != teacher.rotary.kind) {
    core::log::warn("the student rotates its heads otherwise than the teacher (rope_theta {} and {})",
                    student.rotary.theta, teacher.rotary.theta);
  }
  if ((teacher.qkv_bias && !student.qkv_bias) || (teacher.output_bias && !student.output_bias) ||
      (teacher.mlp_bias && !student.mlp_bias)) {
    core::log::warn("the student has no place for biases that the teacher has; they are left out");
  }
}

// The `count` largest entries of `scores`, as indices in ascending order.
at::Tensor most_important(const at::Tensor& scores, int64_t count) {
  return std::get<0>(std::get<1>(scores.topk(count)).sort());
}

at::Tensor column_norms(const at::Tensor& weight) {
  return weight.square().sum(0);
}
at::Tensor row_norms(const at::Tensor& weight) {
  return weight.square().sum(1);
}

// The teacher's tensors in fp32.
class Teacher {
 public:
  Teacher(const DenseConfig& config, const data::WeightSource& source) : reader_(config, source) {
    for (auto& weight : dense_weights(config)) weights_.emplace(weight.name, weight);
  }
  at::Tensor get(std::string_view name) const { return reader_.load(weights_.find(name)->second).to(at::kFloat); }
  at::Tensor get(int64_t layer, std::string_view part) const { return get(layer_weight_name(layer, part)); }
  // Undefined if the teacher has no such tensor.
  at::Tensor find(int64_t layer, std::string_view part) const {
    const std::string name = layer_weight_name(layer, part);
    return weights_.contains(name) ? get(name) : at::Tensor();
  }
  at::Tensor head() const { return get(weights_.contains(kHeadName) ? kHeadName : kEmbeddingName); }

 private:
  DenseWeightReader reader_;
  std::map<std::string, DenseWeight, std::less<>> weights_;
};

// [E'] of the teacher's hidden dimensions.
at::Tensor choose_hidden(const Teacher& teacher, const std::vector<int64_t>& layers, int64_t teacher_size,
                         int64_t size) {
  if (size == teacher_size) return at::arange(size, at::kLong);
  at::Tensor scores = at::zeros({teacher_size}, at::kFloat);
  const auto add = [&](const at::Tensor& norms) { scores += norms / norms.mean().clamp_min(1e-30); };
  add(column_norms(teacher.get(kEmbeddingName)));
  add(column_norms(teacher.head() * teacher.get(kFinalNormName)));
  for (const int64_t layer : layers) {
    const at::Tensor input_norm = teacher.get(layer, "input_layernorm.weight");
    for (const char* part : {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"}) {
      add(column_norms(teacher.get(layer, part) * input_norm));
    }
    const at::Tensor post_norm = teacher.get(layer, "post_attention_layernorm.weight");
    for (const char* part : {"mlp.gate_proj.weight", "mlp.up_proj.weight"}) {
      add(column_norms(teacher.get(layer, part) * post_norm));
    }
    add(row_norms(teacher.get(layer, "self_attn.o_proj.weight")));
    add(row_norms(teacher.get(layer, "mlp.down_proj.weight")));
  }
  return most_important(scores, size);
}

at::Tensor choose_neurons(const Teacher& teacher, int64_t layer, int64_t teacher_size, int64_t size) {
  if (size == teacher_size) return at::arange(size, at::kLong);
  return most_important(row_norms(teacher.get(layer, "mlp.gate_proj.weight")) *
                            row_norms(teacher.get(layer, "mlp.up_proj.weight")) *
                            column_norms(teacher.get(layer, "mlp.down_proj.weight")),
                        size);
}

struct Heads {
  at::Tensor queries;    // [H'] of the teacher's query heads
  at::Tensor key_value;  // [K', K] fp32: each of the student's key-value heads as a mean of the teacher's
};

// How much each query head does, [H].
at::Tensor head_scores(const Teacher& teacher, int64_t layer, const DenseConfig& config) {
  const int64_t group = config.num_heads / config.num_kv_heads;
  const auto norms = [&](const char* part, int64_t heads) {
    return teacher.get(layer, part).view({heads, -1}).norm(2, 1);
  };
  const at::Tensor q = norms("self_attn.q_proj.weight", config.num_heads);
  const at::Tensor k = norms("self_attn.k_proj.weight", config.num_kv_heads).repeat_interleave(group);
  const at::Tensor v = norms("self_attn.v_proj.weight", config.num_kv_heads).repeat_interleave(group);
  const at::Tensor output =
      teacher.get(layer, "self_attn.o_proj.weight").t().reshape({config.num_heads, -1}).norm(2, 1);
  const at::Tensor read = q * k;
  const at::Tensor write = v * output;
  return read / read.mean().clamp_min(1e-30) + write / write.mean().clamp_min(1e-30);
}

Heads choose_heads(const Teacher& teacher, int64_t layer, const DenseConfig& from, const DenseConfig& to) {
  const int64_t teacher_group = from.num_heads / from.num_kv_heads;
  const int64_t group = to.num_heads / to.num_kv_heads;
  const at::Tensor scores = head_scores(teacher, layer, from);
  if (group <= teacher_group && to.num_kv_heads <= from.num_kv_heads) {
    const at::Tensor by_group = scores.view({from.num_kv_heads, teacher_group});
    const auto [best, best_heads] = by_group.topk(group, 1);
    const at::Tensor groups = most_important(best.sum(1), to.num_kv_heads);
    const at::Tensor within = std::get<0>(best_heads.index_select(0, groups).sort(1));
    return {.queries = (within + groups.unsqueeze(1) * teacher_group).flatten(),
            .key_value = at::one_hot(groups, from.num_kv_heads).to(at::kFloat)};
  }
  const at::Tensor queries = most_important(scores, to.num_heads);
  const at::Tensor owners = at::floor_divide(queries, teacher_group);  // [H'] the key-value head each of them used
  const at::Tensor shares = at::one_hot(owners, from.num_kv_heads).to(at::kFloat);
  return {.queries = queries, .key_value = shares.view({to.num_kv_heads, group, from.num_kv_heads}).mean(1)};
}

// [D'] of a head's dimensions: pair i of the student turns about as fast as the pair taken for it.
at::Tensor choose_head_dimensions(int64_t teacher_dim, int64_t dim) {
  const at::Tensor pairs = at::floor_divide(at::arange(dim / 2, at::kLong) * teacher_dim, dim);
  return at::cat({pairs, pairs + teacher_dim / 2});
}

// Copies into the student's parameters, by name.
class Student {
 public:
  explicit Student(nn::CausalLM& model) {
    for (auto& [name, tensor] : model.parameters()) parameters_.emplace(name, tensor);
    core::check(!parameters_.empty(), "a student that is not trainable cannot be initialised from a teacher");
  }
  // Nothing if the student has no such parameter; zero where it has one and `value` is undefined.
  void set(const std::string& name, const at::Tensor& value) const {
    const auto it = parameters_.find(name);
    if (it == parameters_.end()) return;
    const at::NoGradGuard no_grad;
    value.defined() ? it->second.copy_(value) : it->second.zero_();
  }

 private:
  std::map<std::string, at::Tensor, std::less<>> parameters_;
};

// One of the student's layers made from one of the teacher's.
class LayerCopy {
 public:
  LayerCopy(const Student& student, const DenseConfig& to, int64_t to_layer, const Teacher& teacher,
            const DenseConfig& from, int64_t from_layer, const at::Tensor& hidden)
      : student_(student),
        to_(to),
        to_layer_(to_layer),
        teacher_(teacher),
        from_(from),
        from_layer_(from_layer),
        hidden_(hidden) {}

  void run() const {
    copy_attention();
    copy_mlp();
    for (const char* part : {"input_layernorm.weight", "post_attention_layernorm.weight"}) {
      set(part, get(part).index_select(0, hidden_));
    }
  }

 private:
  at::Tensor get(const char* part) const { return teacher_.get(from_layer_, part); }
  at::Tensor find(const std::string& part) const { return teacher_.find(from_layer_, part); }
  void set(const std::string& part, const at::Tensor& value) const {
    student_.set(layer_weight_name(to_layer_, part), value);
  }
  // Applies `choose` to weight [out, E] and bias [out] of a projection that reads the residual stream; `choose` maps
  // [out, columns] to [out', columns].
  template <typename Choose>
  void copy_reader(const std::string& part, const Choose& choose) const {
    set(part + ".weight", choose(find(part + ".weight").index_select(1, hidden_)));
    const at::Tensor bias = find(part + ".bias");
    set(part + ".bias", bias.defined() ? choose(bias.unsqueeze(1)).squeeze(1) : bias);
  }
  // The projection back to the residual stream, weight [E, in], with the inputs `inputs`.
  void copy_writer(const std::string& part, const at::Tensor& inputs) const {
    set(part + ".weight", find(part + ".weight").index_select(0, hidden_).index_select(1, inputs));
    const at::Tensor bias = find(part + ".bias");
    set(part + ".bias", bias.defined() ? bias.index_select(0, hidden_) : bias);
  }

  void copy_attention() const {
    const Heads heads = choose_heads(teacher_, from_layer_, from_, to_);
    const at::Tensor dimensions = choose_head_dimensions(from_.head_dim, to_.head_dim);
    // Scores are sums over D' instead of D products, divided by sqrt(D') instead of sqrt(D).
    const double query_scale = std::sqrt(static_cast<double>(from_.head_dim) / static_cast<double>(to_.head_dim));
    const auto query_rows = [&](const at::Tensor& x) {
      return x.view({from_.num_heads, from_.head_dim, -1})
          .index_select(0, heads.queries)
          .index_select(1, dimensions)
          .flatten(0, 1);
    };
    const auto key_value_rows = [&](const at::Tensor& x) {
      const at::Tensor by_head = x.reshape({from_.num_kv_heads, -1});
      return heads.key_value.matmul(by_head)
          .view({to_.num_kv_heads, from_.head_dim, -1})
          .index_select(1, dimensions)
          .flatten(0, 1);
    };
    copy_reader("self_attn.q_proj",
                [&](const at::Tensor& x) { return to_.qk_norm ? query_rows(x) : query_rows(x) * query_scale; });
    copy_reader("self_attn.k_proj", key_value_rows);
    copy_reader("self_attn.v_proj", key_value_rows);
    if (to_.qk_norm) {
      set("self_attn.q_norm.weight", get("self_attn.q_norm.weight").index_select(0, dimensions) * query_scale);
      set("self_attn.k_norm.weight", get("self_attn.k_norm.weight").index_select(0, dimensions));
    }
    copy_writer("self_attn.o_proj", (heads.queries.unsqueeze(1) * from_.head_dim + dimensions).flatten());
  }

  void copy_mlp() const {
    const at::Tensor neurons = choose_neurons(teacher_, from_layer_, from_.intermediate_size, to_.intermediate_size);
    const auto rows = [&](const at::Tensor& x) { return x.index_select(0, neurons); };
    copy_reader("mlp.gate_proj", rows);
    copy_reader("mlp.up_proj", rows);
    copy_writer("mlp.down_proj", neurons);
  }

  const Student& student_;
  const DenseConfig& to_;
  int64_t to_layer_;
  const Teacher& teacher_;
  const DenseConfig& from_;
  int64_t from_layer_;
  const at::Tensor& hidden_;
};

}  // namespace

std::vector<int64_t> spaced_layers(int64_t teacher_layers, int64_t student_layers) {
  std::vector<int64_t> layers;
  const int64_t gaps = student_layers - 1;
  for (int64_t i = 0; i < student_layers; ++i) {
    layers.push_back(gaps == 0 ? 0 : (2 * i * (teacher_layers - 1) + gaps) / (2 * gaps));  // rounded to nearest
  }
  return layers;
}

void initialise_from_teacher(nn::CausalLM& model, const DenseConfig& config, const DenseConfig& teacher_config,
                             const data::WeightSource& source) {
  check_sizes(config, teacher_config);
  const Student student(model);
  const Teacher teacher(teacher_config, source);
  const std::vector<int64_t> layers = spaced_layers(teacher_config.num_layers, config.num_layers);
  const at::Tensor hidden = choose_hidden(teacher, layers, teacher_config.hidden_size, config.hidden_size);
  student.set(std::string(kEmbeddingName), teacher.get(kEmbeddingName).index_select(1, hidden));
  student.set(std::string(kHeadName), teacher.head().index_select(1, hidden));
  student.set(std::string(kFinalNormName), teacher.get(kFinalNormName).index_select(0, hidden));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    LayerCopy(student, config, i, teacher, teacher_config, layers[static_cast<size_t>(i)], hidden).run();
  }
}

void initialise_from_teacher(nn::CausalLM& student, const nlohmann::json& config, const data::ModelFiles& teacher) {
  const DenseConfig teacher_config = parse_dense_config(teacher.config(), teacher.path().string());
  core::with_context(fmt::format("while initialising the student from {}", teacher.path().string()), [&] {
    initialise_from_teacher(student, parse_dense_config(config, "the student's config"), teacher_config,
                            *teacher.weights());
  });
}

}  // namespace distill::student
