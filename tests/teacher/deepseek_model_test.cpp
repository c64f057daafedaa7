#include "teacher/deepseek_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/rms_norm/rms_norm.h"
#include "teacher/latent_cache.h"
#include "tests/teacher/tiny_deepseek.h"

namespace distill::teacher {
namespace {

constexpr int64_t kBlock = 4;

// Sequence s has the blocks [s * blocks_each, ...) of a cache.
nn::CacheSlots slots_for(const std::vector<int64_t>& before, const std::vector<int64_t>& fresh, int64_t blocks_each) {
  std::vector<int64_t> slots;
  std::vector<int32_t> lengths;
  for (size_t s = 0; s < fresh.size(); ++s) {
    for (int64_t p = before[s]; p < before[s] + fresh[s]; ++p) {
      slots.push_back(static_cast<int64_t>(s) * blocks_each * kBlock + p);
    }
    lengths.push_back(static_cast<int32_t>(before[s] + fresh[s]));
  }
  const auto sequences = static_cast<int64_t>(fresh.size());
  return {.slots = at::tensor(slots, at::kLong),
          .block_table = at::arange(sequences * blocks_each, at::kInt).view({sequences, blocks_each}),
          .context_lengths = at::tensor(lengths, at::kInt)};
}

nn::PackedBatch batch_from(const std::vector<std::vector<int32_t>>& sequences, const std::vector<int64_t>& before) {
  nn::PackedBatch batch = nn::PackedBatch::from_sequences(sequences);
  const auto offsets = batch.sequence_offsets;
  for (size_t s = 0; s < sequences.size(); ++s) {
    batch.positions
        .narrow(0, offsets[static_cast<int64_t>(s)].item<int32_t>(), static_cast<int64_t>(sequences[s].size()))
        .add_(before[s]);
  }
  return batch;
}

class DeepseekModelTest : public testing::Test {
 protected:
  std::unique_ptr<DeepseekModel> model(at::ScalarType compute, bool fp8 = false, bool fp8_cache = false) {
    nlohmann::json json = tiny_config();
    auto tensors = random_tensors(parse_deepseek_config(json), compute);
    if (fp8) quantise_projections(tensors, json);
    return std::make_unique<DeepseekModel>(parse_deepseek_config(json), std::make_shared<MemoryWeights>(tensors),
                                           nn::ModelOptions{.compute = compute, .fp8_cache = fp8_cache});
  }

  const std::vector<int32_t> tokens_{5, 60, 0, 17, 33, 2, 9, 41, 28, 7, 54};
};

TEST_F(DeepseekModelTest, AttendsAlikeAbsorbedAndNaiveInWholeAndInParts) {
  for (const bool fp8 : {false, true}) {
    const auto model = this->model(at::kFloat, fp8);
    const at::Tensor naive = model->forward(nn::PackedBatch::from_sequences({tokens_}));
    const auto cache = model->make_cache(3, kBlock);
    std::vector<at::Tensor> parts;
    for (int64_t begin = 0; const int64_t count : {1, 4, 6}) {
      const std::vector<int32_t> part(tokens_.begin() + begin, tokens_.begin() + begin + count);
      parts.push_back(model->forward(batch_from({part}, {begin}), *cache, slots_for({begin}, {count}, 3)));
      begin += count;
    }
    EXPECT_LT((at::cat(parts) - naive).abs().max().item<double>(), 1e-5 * naive.abs().max().item<double>());
  }
}

TEST_F(DeepseekModelTest, HandsOutWhatEachLayerGivesNumberedAsInTransformers) {
  const auto model = this->model(at::kFloat);
  const auto batch = nn::PackedBatch::from_sequences({tokens_});
  nn::LayerTap tap{.layers = {0, 1, 2, 3}}, cached{.layers = {0, 1, 2, 3}};
  EXPECT_TRUE(model->forward_tapped(batch, nullptr, nullptr, tap).equal(tap.states[3]));
  const auto cache = model->make_cache(3, kBlock);
  const auto slots = slots_for({0}, {static_cast<int64_t>(tokens_.size())}, 3);
  model->forward_tapped(batch, cache.get(), &slots, cached);
  nlohmann::json json = tiny_config();
  const auto tensors = random_tensors(parse_deepseek_config(json));
  EXPECT_TRUE(tap.states[0].equal(tensors.at(std::string(kEmbeddingName)).index_select(0, batch.tokens)));
  // A model of fewer layers gives the state of its last one behind the norm.
  json["num_nextn_predict_layers"] = 0;
  for (size_t layers = 1; layers <= 3; ++layers) {
    json["num_hidden_layers"] = layers;
    const DeepseekConfig config = parse_deepseek_config(json);
    std::map<std::string, at::Tensor> fewer;
    for (const DeepseekTensor& tensor : deepseek_tensors(config, 0)) fewer[tensor.name] = tensors.at(tensor.name);
    DeepseekModel shorter(config, std::make_shared<MemoryWeights>(fewer), {.compute = at::kFloat});
    const at::Tensor expected =
        layers == 3 ? tap.states[3]
                    : kernels::rms_norm(tap.states[layers], fewer.at(std::string(kFinalNormName)), config.norm_eps);
    EXPECT_TRUE(shorter.forward(batch).equal(expected)) << layers;
    EXPECT_TRUE(at::allclose(cached.states[layers], tap.states[layers], 1e-4, 1e-4)) << layers;
  }
}

TEST_F(DeepseekModelTest, WithACacheInFp8AttendsAlikeInBothFormsAndStaysClose) {
  const auto model = this->model(at::kFloat, /*fp8=*/false, /*fp8_cache=*/true);
  const at::Tensor exact = model->forward(nn::PackedBatch::from_sequences({tokens_}));
  const auto run = [&](const std::vector<int64_t>& counts) {
    const auto cache = model->make_cache(3, kBlock);
    EXPECT_EQ(cache->bytes_per_token(), 4 * (4 + 8 * 2 + 20));
    std::vector<at::Tensor> parts;
    for (int64_t begin = 0; const int64_t count : counts) {
      const std::vector<int32_t> part(tokens_.begin() + begin, tokens_.begin() + begin + count);
      parts.push_back(model->forward(batch_from({part}, {begin}), *cache, slots_for({begin}, {count}, 3)));
      begin += count;
    }
    return at::cat(parts);
  };
  const at::Tensor naive = run({11});
  const double size = exact.abs().max().item<double>();
  // A latent computed beside others may differ in its last bit, and then round to the next E4M3 number.
  EXPECT_LT((run({1, 4, 6}) - naive).abs().max().item<double>(), 1e-3 * size);
  // E4M3 rounds by 1/16 at most, 2.6 % on average, in each of four layers. Of most tokens: where a rounding sends one
  // to another expert, its error is of another kind.
  const at::Tensor errors = (naive - exact).square().mean(1).sqrt() / exact.square().mean().sqrt();
  const double error = errors.median().item<double>();
  EXPECT_GT(error, 1e-4);
  EXPECT_LT(error, 0.08);
}

TEST_F(DeepseekModelTest, GivesEachSequenceTheSameInAnyCompany) {
  for (const auto compute : {at::kFloat, at::kBFloat16}) {
    const auto model = this->model(compute, /*fp8=*/true);
    const std::vector<int32_t> other{3, 4, 50, 6, 20, 21, 22};
    // Sequence 0 decodes its last token while sequence 1 is a whole prompt: both forms of attention in one batch.
    const auto cache = model->make_cache(6, kBlock);
    const std::vector<int32_t> first(tokens_.begin(), tokens_.end() - 1);
    model->forward(batch_from({first}, {0}), *cache, slots_for({0}, {10}, 3));
    const at::Tensor both =
        model->forward(batch_from({{tokens_.back()}, other}, {10, 0}), *cache, slots_for({10, 0}, {1, 7}, 3));
    const auto own_cache = model->make_cache(3, kBlock);
    model->forward(batch_from({first}, {0}), *own_cache, slots_for({0}, {10}, 3));
    const at::Tensor alone = model->forward(batch_from({{tokens_.back()}}, {10}), *own_cache, slots_for({10}, {1}, 3));
    const auto other_cache = model->make_cache(3, kBlock);
    const at::Tensor other_alone = model->forward(batch_from({other}, {0}), *other_cache, slots_for({0}, {7}, 3));
    EXPECT_TRUE(at::equal(both.narrow(0, 0, 1), alone)) << compute;
    EXPECT_TRUE(at::equal(both.narrow(0, 1, 7), other_alone)) << compute;
  }
}

TEST_F(DeepseekModelTest, ContinuesFromACopiedBlock) {
  const auto model = this->model(at::kFloat);
  const auto cache = model->make_cache(4, kBlock);
  model->forward(batch_from({{1, 2, 3}}, {0}), *cache, slots_for({0}, {3}, 1));
  const auto continue_in = [&](int64_t block) {
    nn::CacheSlots slots = slots_for({3}, {1}, 1);
    slots.slots.add_(block * kBlock);
    slots.block_table.fill_(block);
    return model->forward(batch_from({{9}}, {3}), *cache, slots);
  };
  cache->copy_block(0, 2);
  EXPECT_TRUE(at::equal(continue_in(2), continue_in(0)));
}

TEST_F(DeepseekModelTest, CachesOneLatentAndOneRotaryKeyPerTokenAndLayer) {
  const auto cache = model(at::kBFloat16)->make_cache(3, kBlock);
  EXPECT_EQ(cache->bytes_per_token(), 4 * (20 + 8) * 2);  // 3 layers and a prediction module
}

TEST_F(DeepseekModelTest, RunsNoTokens) {
  const auto model = this->model(at::kFloat);
  const at::Tensor hidden = model->forward(nn::PackedBatch::from_sequences({}));
  EXPECT_EQ(hidden.sizes(), at::IntArrayRef({0, 72}));
  EXPECT_EQ(model->logits(hidden).sizes(), at::IntArrayRef({0, 61}));
}

TEST_F(DeepseekModelTest, ReadsEmbeddingAndHeadInFp8) {
  nlohmann::json json = tiny_config();
  json.update({{"vocab_size", 300}, {"hidden_size", 150}});  // several blocks of scales, ragged ones
  auto tensors = random_tensors(parse_deepseek_config(json));
  json["quantization_config"] = {{"quant_method", "fp8"}};
  auto dequantised = tensors;
  for (const auto name : {kEmbeddingName, kHeadName}) {
    const std::string key(name);
    const auto rows = at::arange(1, 301, at::kFloat).unsqueeze(1);  // so that the scales differ
    const kernels::StoredWeight weight = kernels::quantise_fp8(tensors.at(key) * rows);
    tensors[key] = weight.values;
    tensors[key + "_scale_inv"] = weight.scales;
    dequantised[key] = kernels::dequantise(weight);
  }
  const auto logits = [&](const std::map<std::string, at::Tensor>& weights) {
    DeepseekModel model(parse_deepseek_config(json), std::make_shared<MemoryWeights>(weights), {.compute = at::kFloat});
    return model.logits(model.forward(nn::PackedBatch::from_sequences({{0, 127, 128, 255, 256, 299}})));
  };
  EXPECT_TRUE(at::allclose(logits(tensors), logits(dequantised), 1e-5, 1e-3));
}

TEST_F(DeepseekModelTest, RefusesTokensItDoesNotKnow) {
  EXPECT_THROW(model(at::kFloat)->forward(nn::PackedBatch::from_sequences({{61}})), c10::Error);
}

TEST_F(DeepseekModelTest, PredictsFurtherTokensAlikeWithAndWithoutCache) {
  const auto model = this->model(at::kFloat);
  ASSERT_EQ(model->mtp_depth(), 1);
  const at::Tensor hidden = model->forward(nn::PackedBatch::from_sequences({tokens_}));
  const std::vector<int32_t> next(tokens_.begin() + 1, tokens_.end());
  const at::Tensor known = hidden.narrow(0, 0, 10);
  const at::Tensor whole = model->mtp_forward(0, nn::PackedBatch::from_sequences({next}), known, nullptr, nullptr);
  EXPECT_EQ(model->mtp_logits(0, whole).sizes(), at::IntArrayRef({10, 61}));
  const auto cache = model->make_cache(3, kBlock);
  std::vector<at::Tensor> parts;
  for (int64_t t = 0; t < 10; ++t) {
    const nn::CacheSlots slots = slots_for({t}, {1}, 3);
    parts.push_back(model->mtp_forward(0, batch_from({{next[static_cast<size_t>(t)]}}, {t}), known.narrow(0, t, 1),
                                       cache.get(), &slots));
  }
  EXPECT_LT((at::cat(parts) - whole).abs().max().item<double>(), 1e-5 * whole.abs().max().item<double>());
}

TEST(AbsorbedAttention, IsChosenForDecodingAndNaiveForWholePrompts) {
  const MlaConfig v3{.num_heads = 128, .latent_rank = 512, .nope_dim = 128, .rope_dim = 64, .value_dim = 128};
  EXPECT_TRUE(absorbed_is_cheaper(v3, 1, 1));
  EXPECT_TRUE(absorbed_is_cheaper(v3, 1, 4096));
  EXPECT_TRUE(absorbed_is_cheaper(v3, 4, 4096));
  EXPECT_FALSE(absorbed_is_cheaper(v3, 4096, 4096));
  EXPECT_FALSE(absorbed_is_cheaper(v3, 512, 4096));  // 512 x 768 more per token of context, 128 K to project it
  EXPECT_TRUE(absorbed_is_cheaper(v3, 128, 4096));
  EXPECT_TRUE(absorbed_is_cheaper(v3, 512, kMostProjected + 1));
  // However small the latents are, tokens are not to come out otherwise when drafts are verified together.
  const MlaConfig small{.num_heads = 2, .latent_rank = 512, .nope_dim = 1, .rope_dim = 1, .value_dim = 1};
  EXPECT_TRUE(absorbed_is_cheaper(small, kLeastPiece - 1, 4096));
  EXPECT_FALSE(absorbed_is_cheaper(small, kLeastPiece, 4096));
}

// Pieces long enough for the naive form over earlier context.
TEST_F(DeepseekModelTest, ReadsALongPromptInPiecesAsInOne) {
  EXPECT_FALSE(absorbed_is_cheaper(parse_deepseek_config(tiny_config()).attention, 70, 230));
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 230; ++i) tokens.push_back((7 * i + 3) % 61);
  for (const bool fp8_cache : {false, true}) {
    const auto model = this->model(at::kFloat, /*fp8=*/false, fp8_cache);
    const auto run = [&](const std::vector<int64_t>& counts) {
      const int64_t blocks = 230 / kBlock + 1;
      const auto cache = model->make_cache(blocks, kBlock);
      std::vector<at::Tensor> parts;
      for (int64_t begin = 0; const int64_t count : counts) {
        const std::vector<int32_t> part(tokens.begin() + begin, tokens.begin() + begin + count);
        parts.push_back(model->forward(batch_from({part}, {begin}), *cache, slots_for({begin}, {count}, blocks)));
        begin += count;
      }
      return at::cat(parts);
    };
    const at::Tensor whole = run({230});
    EXPECT_LT((run({70, 90, 70}) - whole).abs().max().item<double>(), 1e-5 * whole.abs().max().item<double>());
  }
}

}  // namespace
}  // namespace distill::teacher
