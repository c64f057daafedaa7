#include "student/dense_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "kernels/rms_norm/rms_norm.h"
#include "student/dense_weights.h"
#include "tests/kernels/compare.h"
#include "tests/student/memory_weights.h"

// Equality with transformers is checked by tests/parity/logits_parity.py; here, that the forms of a model agree.

namespace distill::student {
namespace {

using kernels::scaled_error;
using nlohmann::json;
using nn::CacheSlots;
using nn::ModelOptions;
using nn::PackedBatch;

json config_of(const std::string& model_type) {
  return {{"model_type", model_type},   {"vocab_size", 90},       {"hidden_size", 64},
          {"intermediate_size", 100},   {"num_hidden_layers", 3}, {"num_attention_heads", 6},
          {"num_key_value_heads", 2},   {"head_dim", 20},         {"max_position_embeddings", 128},
          {"use_sliding_window", true}, {"sliding_window", 7},    {"max_window_layers", 1},
          {"initializer_range", 0.1},   {"attention_bias", true}};
}

std::vector<int32_t> sequence_of(int64_t length, int32_t seed) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < length; ++i) tokens.push_back(static_cast<int32_t>((seed + i * i * 7) % 90));
  return tokens;
}

struct Variant {
  std::string model_type;
  at::ScalarType compute;
};

class DenseModel : public testing::TestWithParam<Variant> {
 protected:
  std::unique_ptr<nn::CausalLM> make(bool trainable, bool recompute = false) const {
    return make_dense_model(config_of(GetParam().model_type),
                            {.compute = GetParam().compute, .trainable = trainable, .recompute = recompute}, 7);
  }
  // How far two orders of summation may drift apart.
  double tolerance() const { return GetParam().compute == at::kFloat ? 1e-4 : 0.1; }
};

// Runs the last `lengths[s]` tokens of each sequence, whose earlier tokens are in the cache. Sequence s owns the blocks
// [10 s, 10 s + 10) of 4 tokens.
at::Tensor run_cached(nn::CausalLM& model, nn::KvCache& cache, const std::vector<std::vector<int32_t>>& sequences,
                      const std::vector<int64_t>& lengths) {
  std::vector<int64_t> tokens, positions, slots;
  std::vector<int32_t> offsets{0}, contexts, table;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto size = static_cast<int64_t>(sequences[s].size());
    for (int64_t p = size - lengths[s]; p < size; ++p) {
      tokens.push_back(sequences[s][static_cast<size_t>(p)]);
      positions.push_back(p);
      slots.push_back(static_cast<int64_t>(s) * 40 + p);
    }
    offsets.push_back(static_cast<int32_t>(tokens.size()));
    contexts.push_back(static_cast<int32_t>(size));
    for (int32_t b = 0; b < 10; ++b) table.push_back(static_cast<int32_t>(s) * 10 + b);
  }
  const PackedBatch batch{.tokens = at::tensor(tokens, at::kLong),
                          .positions = at::tensor(positions, at::kLong),
                          .sequence_offsets = at::tensor(offsets, at::kInt)};
  return model.forward(batch, cache,
                       {.slots = at::tensor(slots, at::kLong),
                        .block_table = at::tensor(table, at::kInt).view({-1, 10}),
                        .context_lengths = at::tensor(contexts, at::kInt)});
}

TEST_P(DenseModel, GivesTheSameWithAndWithoutACacheInAnyCutting) {
  const auto model = make(false);
  const auto tokens = sequence_of(30, 1);
  const at::Tensor whole = model->forward(PackedBatch::from_sequences({tokens}));
  const auto cache = model->make_cache(10, 4);
  int64_t done = 0;
  for (const int64_t length : {11, 1, 1, 16, 1}) {
    done += length;
    const std::vector<int32_t> prefix(tokens.begin(), tokens.begin() + done);
    const at::Tensor part = run_cached(*model, *cache, {prefix}, {length});
    EXPECT_LT(scaled_error(part, whole.narrow(0, done - length, length)), tolerance()) << "up to " << done;
  }
}

TEST_P(DenseModel, AnswersASequenceTheSameWhateverElseIsInTheBatch) {
  const auto model = make(false);
  const std::vector<std::vector<int32_t>> sequences{sequence_of(30, 1), sequence_of(3, 2), sequence_of(17, 3)};
  const auto cache = model->make_cache(30, 4);
  const at::Tensor together = run_cached(*model, *cache, sequences, {30, 3, 17});
  int64_t begin = 0;
  for (const auto& sequence : sequences) {
    const auto length = static_cast<int64_t>(sequence.size());
    const auto own_cache = model->make_cache(10, 4);
    const at::Tensor alone = run_cached(*model, *own_cache, {sequence}, {length});
    EXPECT_TRUE(at::equal(alone, together.narrow(0, begin, length))) << "sequence of " << length;
    // Nor does it matter whether the last token came with the others or alone.
    const at::Tensor last = run_cached(*model, *own_cache, {sequence}, {1});
    EXPECT_TRUE(at::equal(last[0], alone[length - 1])) << "sequence of " << length;
    EXPECT_TRUE(at::equal(model->logits(last)[0], model->logits(together)[begin + length - 1]));
    begin += length;
  }
}

TEST_P(DenseModel, TrainsWhatItInfers) {
  const auto trained = make(true);
  const auto inferred = make(false);
  const auto batch = PackedBatch::from_sequences({sequence_of(12, 1), sequence_of(20, 4)});
  const at::Tensor hidden = trained->forward(batch);
  EXPECT_TRUE(hidden.requires_grad());
  EXPECT_LT(scaled_error(hidden.detach(), inferred->forward(batch)), tolerance());
  EXPECT_LT(scaled_error(trained->logits(hidden).detach(), inferred->logits(inferred->forward(batch))), tolerance());
  EXPECT_EQ(hidden.scalar_type(), GetParam().compute);
  const auto cache = trained->make_cache(10, 4);
  EXPECT_FALSE(run_cached(*trained, *cache, {sequence_of(12, 1)}, {12}).requires_grad());
}

TEST_P(DenseModel, ReachesEveryParameterWithAGradient) {
  const auto model = make(true);
  const at::Tensor hidden = model->forward(PackedBatch::from_sequences({sequence_of(25, 1)}));
  const at::Tensor logits = model->logits(hidden);
  logits.log_softmax(-1).select(1, 3).sum().neg().backward();
  for (const auto& [name, parameter] : model->parameters()) {
    ASSERT_TRUE(parameter.grad().defined()) << name;
    EXPECT_TRUE(parameter.is_leaf() && parameter.scalar_type() == at::kFloat) << name;
    EXPECT_GT(parameter.grad().abs().max().item<double>(), 0) << name;
  }
}

TEST_P(DenseModel, RecomputesActivationsToTheSameGradients) {
  const auto gradients = [&](bool recompute) {
    const auto model = make(true, recompute);
    model->logits(model->forward(PackedBatch::from_sequences({sequence_of(25, 1), sequence_of(9, 2)})))
        .log_softmax(-1)
        .select(1, 3)
        .sum()
        .backward();
    std::vector<at::Tensor> found;
    for (const auto& [name, parameter] : model->parameters()) found.push_back(parameter.grad());
    return found;
  };
  const auto kept = gradients(false);
  const auto recomputed = gradients(true);
  for (size_t i = 0; i < kept.size(); ++i) EXPECT_TRUE(kept[i].equal(recomputed[i])) << i;
}

TEST_P(DenseModel, HandsOutWhatEachLayerGivesNumberedAsInTransformers) {
  const auto model = make(false), trained = make(true);
  const auto batch = PackedBatch::from_sequences({sequence_of(25, 1), sequence_of(9, 2)});
  nn::LayerTap tap{.layers = {3, 0, 1, 2}};
  const at::Tensor hidden = model->forward_tapped(batch, nullptr, nullptr, tap);
  ASSERT_EQ(tap.states.size(), 4U);
  EXPECT_TRUE(hidden.equal(model->forward(batch)));
  EXPECT_TRUE(hidden.equal(tap.states[0]));
  const at::Tensor embedding = trained->parameters().front().second.detach();
  EXPECT_TRUE(tap.states[1].equal(embedding.index_select(0, batch.tokens).to(GetParam().compute)));
  // A model of fewer layers gives the state of its last one behind the norm, whose weights are one.
  for (const int64_t layers : {1, 2}) {
    json config = config_of(GetParam().model_type);
    config["num_hidden_layers"] = layers;
    const auto shorter = make_dense_model(config, {.compute = GetParam().compute}, 7);
    const at::Tensor state = tap.states[static_cast<size_t>(layers) + 1];
    const at::Tensor normed = kernels::rms_norm(state, at::ones({64}), parse_dense_config(config).norm_eps);
    EXPECT_TRUE(normed.equal(shorter->forward(batch))) << layers;
  }
  nn::LayerTap traced{.layers = {1, 3}};
  trained->forward_tapped(batch, nullptr, nullptr, traced);
  EXPECT_LT(scaled_error(traced.states[0].detach(), tap.states[2]), tolerance());
  EXPECT_TRUE(traced.states[0].requires_grad());
}

INSTANTIATE_TEST_SUITE_P(Families, DenseModel,
                         testing::Values(Variant{"llama", at::kFloat}, Variant{"llama", at::kBFloat16},
                                         Variant{"qwen2", at::kFloat}, Variant{"qwen2", at::kBFloat16},
                                         Variant{"qwen3", at::kFloat}, Variant{"qwen3", at::kBFloat16}));

TEST(DenseModelParameters, CarryHuggingFaceNamesInTheOrderOfTheTable) {
  json json_config = config_of("qwen3");
  json_config["tie_word_embeddings"] = true;
  const auto model = make_dense_model(json_config, {.compute = at::kFloat, .trainable = true}, 1);
  const auto table = dense_weights(parse_dense_config(json_config));
  const auto parameters = model->parameters();
  ASSERT_EQ(parameters.size(), table.size());
  for (size_t i = 0; i < table.size(); ++i) {
    EXPECT_EQ(parameters[i].first, table[i].name);
    EXPECT_EQ(parameters[i].second.sizes().vec(), table[i].shape) << table[i].name;
  }
  EXPECT_TRUE(model->head_weight().is_same(parameters[0].second));
}

TEST(DenseModelParameters, FollowFromTheSeedAlone) {
  const auto parameters_of = [](uint64_t seed) {
    return make_dense_model(config_of("llama"), {.compute = at::kFloat, .trainable = true}, seed)->parameters();
  };
  const auto first = parameters_of(1);
  const auto again = parameters_of(1);
  const auto other = parameters_of(2);
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(at::equal(first[i].second, again[i].second)) << first[i].first;
    // Norms and biases start alike.
    EXPECT_EQ(at::equal(first[i].second, other[i].second), first[i].second.dim() == 1) << first[i].first;
  }
  const at::Tensor embedding = first[0].second.detach();
  EXPECT_NEAR(embedding.std().item<double>(), 0.1, 0.005);
  EXPECT_NEAR(embedding.mean().item<double>(), 0, 0.005);
}

TEST(DenseModelBatch, OfAnotherShapeOrOfUnknownTokensIsRefused) {
  const auto model = make_dense_model(config_of("llama"), {}, 1);
  PackedBatch batch = PackedBatch::from_sequences({{1, 2, 3}});
  batch.positions = batch.positions.narrow(0, 0, 2);
  EXPECT_THROW(model->forward(batch), c10::Error);
  EXPECT_THROW(model->forward(PackedBatch::from_sequences({{1, 90}})), c10::Error);
  EXPECT_THROW(model->forward(PackedBatch::from_sequences({{-91}})), c10::Error);
}

}  // namespace
}  // namespace distill::student
