#include "student/initialise.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "student/dense_model.h"
#include "tests/kernels/compare.h"
#include "tests/student/memory_weights.h"

namespace distill::student {
namespace {

using nlohmann::json;
using nn::PackedBatch;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr nn::ModelOptions kTrainable{.compute = at::kFloat, .trainable = true};

const json kTeacher{{"model_type", "llama"},    {"vocab_size", 50},       {"hidden_size", 48},
                    {"intermediate_size", 64},  {"num_hidden_layers", 4}, {"num_attention_heads", 6},
                    {"num_key_value_heads", 3}, {"head_dim", 16},         {"initializer_range", 0.2}};

json changed(json config, const json& changes) {
  config.update(changes);
  return config;
}

using Tensors = std::map<std::string, at::Tensor>;

Tensors tensors_of(nn::CausalLM& model) {
  Tensors tensors;
  for (const auto& [name, tensor] : model.parameters()) tensors[name] = tensor.detach().clone();
  return tensors;
}

Tensors teacher_tensors(const json& config) {
  Tensors tensors = tensors_of(*make_dense_model(config, kTrainable, 3));
  for (auto& [name, tensor] : tensors) {
    if (tensor.dim() == 1) tensor += 0.1 * at::arange(tensor.size(0)) / tensor.size(0);  // norms and biases that show
  }
  return tensors;
}

std::unique_ptr<nn::CausalLM> student_of(const json& config, const json& teacher_config, const Tensors& teacher) {
  auto student = make_dense_model(config, kTrainable, 11);
  initialise_from_teacher(*student, parse_dense_config(config), parse_dense_config(teacher_config),
                          MemoryWeights(teacher));
  return student;
}

at::Tensor logits_of(nn::CausalLM& model) {
  const at::NoGradGuard no_grad;
  return model.logits(model.forward(PackedBatch::from_sequences({{1, 5, 30, 2, 49, 17, 5, 5}, {8, 9}})));
}

at::Tensor teacher_logits(const json& config, const Tensors& tensors) {
  return logits_of(*load_dense_model(parse_dense_config(config), MemoryWeights(tensors), {.compute = at::kFloat}));
}

TEST(SpacedLayers, KeepTheFirstAndTheLast) {
  EXPECT_THAT(spaced_layers(30, 4), ElementsAre(0, 10, 19, 29));
  EXPECT_THAT(spaced_layers(5, 5), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(spaced_layers(7, 2), ElementsAre(0, 6));
  EXPECT_THAT(spaced_layers(7, 1), ElementsAre(0));
}

TEST(InitialiseFromTeacher, OfTheSameSizesGivesTheTeacher) {
  for (const json& config : {kTeacher, changed(kTeacher, {{"model_type", "qwen2"}}),
                             changed(kTeacher, {{"model_type", "qwen3"}, {"tie_word_embeddings", true}})}) {
    const Tensors teacher = teacher_tensors(config);
    const auto student = student_of(config, config, teacher);
    for (const auto& [name, tensor] : tensors_of(*student)) EXPECT_TRUE(at::equal(tensor, teacher.at(name))) << name;
  }
}

TEST(InitialiseFromTeacher, TakesWholeLayers) {
  const Tensors teacher = teacher_tensors(kTeacher);
  const auto student = tensors_of(*student_of(changed(kTeacher, {{"num_hidden_layers", 2}}), kTeacher, teacher));
  for (const char* part : {"self_attn.q_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight"}) {
    EXPECT_TRUE(at::equal(student.at(std::string("model.layers.0.") + part),
                          teacher.at(std::string("model.layers.0.") + part)));
    EXPECT_TRUE(at::equal(student.at(std::string("model.layers.1.") + part),
                          teacher.at(std::string("model.layers.3.") + part)));
  }
}

// Where the rest of a teacher does nothing, the student that leaves it out must be the same function.
TEST(InitialiseFromTeacher, LeavesOutNeuronsAndHeadsThatDoNothing) {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    const json config = changed(kTeacher, {{"model_type", family}});
    Tensors teacher = teacher_tensors(config);
    for (auto& [name, tensor] : teacher) {
      if (name.ends_with("down_proj.weight")) tensor.slice(1, 10, 34).zero_();       // 24 of 64 neurons
      if (name.ends_with("o_proj.weight")) tensor.slice(1, 2 * 16, 4 * 16).zero_();  // the heads of one of 3 groups
    }
    const json smaller =
        changed(config, {{"intermediate_size", 40}, {"num_attention_heads", 4}, {"num_key_value_heads", 2}});
    // Heads also count for what they read, so those that write nothing must not read much either.
    for (auto& [name, tensor] : teacher) {
      if (name.ends_with("q_proj.weight")) tensor.slice(0, 2 * 16, 4 * 16).mul_(0.1);
    }
    const auto student = student_of(smaller, config, teacher);
    EXPECT_LT(kernels::scaled_error(logits_of(*student), teacher_logits(config, teacher)), 1e-4) << family;
  }
}

TEST(InitialiseFromTeacher, LeavesOutHiddenDimensionsThatCarryNothing) {
  Tensors teacher = teacher_tensors(kTeacher);
  const at::Tensor dead = at::tensor({3, 17, 18, 40, 41, 42, 45, 47}, at::kLong);
  for (auto& [name, tensor] : teacher) {
    const bool writes = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
    if (tensor.dim() == 2) tensor.index_fill_(writes ? 0 : 1, dead, 0);
  }
  const json smaller = changed(kTeacher, {{"hidden_size", 40}});
  const auto student = student_of(smaller, kTeacher, teacher);
  // The root mean square over fewer dimensions is larger by sqrt(48 / 40); undo that in the norms.
  for (auto& [name, tensor] : student->parameters()) {
    const at::NoGradGuard no_grad;
    if (name.ends_with("norm.weight")) tensor.mul_(std::sqrt(48.0 / 40.0));
  }
  EXPECT_LT(kernels::scaled_error(logits_of(*student), teacher_logits(kTeacher, teacher)), 1e-4);
}

TEST(InitialiseFromTeacher, AveragesKeyValueHeadsWhereGroupsDoNotFit) {
  // 6 query heads in 3 groups become 6 in 1: the one key-value head is the mean of three.
  const Tensors teacher = teacher_tensors(kTeacher);
  const auto student = tensors_of(*student_of(changed(kTeacher, {{"num_key_value_heads", 1}}), kTeacher, teacher));
  const std::string name = "model.layers.2.self_attn.v_proj.weight";
  EXPECT_LT(kernels::scaled_error(student.at(name), teacher.at(name).view({3, 16, 48}).mean(0)), 1e-6);
  const std::string query = "model.layers.2.self_attn.q_proj.weight";
  EXPECT_TRUE(at::equal(student.at(query), teacher.at(query)));
}

TEST(InitialiseFromTeacher, KeepsFrequenciesAndScoresWhenHeadsShrink) {
  Tensors teacher = teacher_tensors(kTeacher);
  for (auto& [name, tensor] : teacher) {
    if (!name.ends_with("q_proj.weight") && !name.ends_with("k_proj.weight")) continue;
    // Pairs 1, 3, 5, 7 repeat pairs 0, 2, 4, 6.
    const at::Tensor pairs = tensor.view({-1, 2, 4, 2, 48});
    pairs.select(3, 1).copy_(pairs.select(3, 0));
  }
  const auto student = tensors_of(*student_of(changed(kTeacher, {{"head_dim", 8}}), kTeacher, teacher));
  const auto gram = [](const Tensors& tensors, int64_t dim) {  // q^T k / sqrt(D) at equal positions
    const at::Tensor q = tensors.at("model.layers.0.self_attn.q_proj.weight").slice(0, 0, dim);
    const at::Tensor k = tensors.at("model.layers.0.self_attn.k_proj.weight").slice(0, 0, dim);
    return q.t().matmul(k) / std::sqrt(static_cast<double>(dim));
  };
  EXPECT_LT(kernels::scaled_error(gram(student, 8), gram(teacher, 16)), 1e-5);
}

TEST(InitialiseFromTeacher, UntiesAndTiesEmbeddings) {
  const json tied = changed(kTeacher, {{"tie_word_embeddings", true}});
  const Tensors teacher = teacher_tensors(tied);
  const auto student = tensors_of(*student_of(kTeacher, tied, teacher));
  EXPECT_TRUE(at::equal(student.at("lm_head.weight"), teacher.at("model.embed_tokens.weight")));
}

TEST(InitialiseFromTeacher, NamesTheKeyThatDoesNotAllowIt) {
  const Tensors teacher = teacher_tensors(kTeacher);
  const auto error_of = [&](const json& changes) -> std::string {
    try {
      student_of(changed(kTeacher, changes), kTeacher, teacher);
      return {};
    } catch (const core::Error& error) {
      return error.what();
    }
  };
  EXPECT_THAT(error_of({{"hidden_size", 64}}), HasSubstr("hidden_size: the student's 64 is above the teacher's 48"));
  EXPECT_THAT(error_of({{"num_hidden_layers", 5}}), HasSubstr("num_hidden_layers"));
  EXPECT_THAT(error_of({{"vocab_size", 40}}), HasSubstr("vocab_size: the student's 40 is not the teacher's 50"));
  EXPECT_THAT(error_of({{"model_type", "qwen3"}}), HasSubstr("qwen3 normalises queries and keys, llama does not"));
}

}  // namespace
}  // namespace distill::student
