#include "teacher/speculative_decoder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "tests/teacher/tiny_deepseek.h"

namespace distill::teacher {
namespace {

// A model in which the next token hangs mostly on the last one, and a prediction module that looks at that too: drafts
// are often, not always right.
class SpeculativeDecoderTest : public testing::Test {
 protected:
  std::unique_ptr<DeepseekModel> model(at::ScalarType compute, bool with_module = true) {
    nlohmann::json json = tiny_config();
    const DeepseekConfig config = parse_deepseek_config(json);
    auto tensors = random_tensors(config, compute);
    for (auto& [name, tensor] : tensors) {
      if (name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight")) tensor = tensor * 0.3;
      if (name == kEmbeddingName) tensor = tensor * 10;
    }
    tensors["model.layers.3.embed_tokens.weight"] = tensors[std::string(kEmbeddingName)];
    tensors["model.layers.3.shared_head.head.weight"] = tensors[std::string(kHeadName)];
    tensors["model.layers.3.shared_head.norm.weight"] = tensors[std::string(kFinalNormName)];
    tensors["model.layers.3.enorm.weight"] = at::ones({72});
    tensors["model.layers.3.eh_proj.weight"] =
        at::cat({2 * at::eye(72), 0.02 * at::ones({72, 72})}, 1).to(compute).contiguous();
    if (!with_module) std::erase_if(tensors, [](const auto& e) { return e.first.starts_with("model.layers.3."); });
    return std::make_unique<DeepseekModel>(config, std::make_shared<MemoryWeights>(tensors),
                                           nn::ModelOptions{.compute = compute});
  }

  const std::vector<int32_t> prompt_{7, 19, 4, 33, 58};
};

TEST_F(SpeculativeDecoderTest, GivesTheGreedyAnswerTokenForToken) {
  for (const auto compute : {at::kFloat, at::kBFloat16}) {
    const auto model = this->model(compute);
    const SpeculativeOptions plain{.drafts = 0, .max_new_tokens = 60, .sampling = {.temperature = 0}};
    const auto expected = SpeculativeDecoder(*model).generate(prompt_, plain);
    ASSERT_EQ(expected.size(), 60);
    for (const int64_t drafts : {1, 2, 5}) {
      SpeculativeDecoder decoder(*model);
      SpeculativeOptions options = plain;
      options.drafts = drafts;
      EXPECT_EQ(decoder.generate(prompt_, options), expected) << compute << " " << drafts;
      EXPECT_GT(decoder.statistics().acceptance(0), 0.2);
      EXPECT_LT(decoder.statistics().passes, 60);
    }
  }
}

TEST_F(SpeculativeDecoderTest, DrawsTheSameTokensAsPlainSampling) {
  const auto model = this->model(at::kFloat);
  SpeculativeDecoder decoder(*model);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SpeculativeOptions options{
        .drafts = 0, .max_new_tokens = 24, .sampling = {.temperature = 0.8, .top_p = 0.9}, .seed = seed};
    const auto expected = SpeculativeDecoder(*model).generate(prompt_, options);
    options.drafts = 3;
    EXPECT_EQ(decoder.generate(prompt_, options), expected) << "seed " << seed;
  }
  const auto& statistics = decoder.statistics();
  EXPECT_GT(statistics.acceptance(0), 0.05);
  EXPECT_LT(statistics.acceptance(0), 1.0);
  EXPECT_GE(statistics.accepted[0], statistics.accepted[1]);
}

TEST_F(SpeculativeDecoderTest, DrawsTheSecondTokenFromTheModelsDistribution) {
  const auto model = this->model(at::kFloat);
  SpeculativeDecoder decoder(*model);
  constexpr int64_t kDraws = 2000;
  // Of answers that begin alike, the second tokens: chi-squared against the model's own probabilities.
  std::map<int32_t, std::vector<int64_t>> counts;
  for (int64_t i = 0; i < kDraws; ++i) {
    const auto answer = decoder.generate(
        prompt_,
        {.drafts = 2, .max_new_tokens = 3, .sampling = {.temperature = 0.5}, .document = static_cast<uint64_t>(i)});
    auto& row = counts[answer[0]];
    row.resize(61);
    ++row[static_cast<size_t>(answer[1])];
  }
  const auto most = std::ranges::max_element(counts, {}, [](const auto& entry) {
    return std::accumulate(entry.second.begin(), entry.second.end(), int64_t{0});
  });
  const int64_t total = std::accumulate(most->second.begin(), most->second.end(), int64_t{0});
  ASSERT_GT(total, 100);
  std::vector<int32_t> context = prompt_;
  context.push_back(most->first);
  const at::Tensor hidden = model->forward(nn::PackedBatch::from_sequences({context}));
  const at::Tensor expected =
      (model->logits(hidden.narrow(0, 5, 1))[0] / 0.5).softmax(0).to(at::kDouble) * static_cast<double>(total);
  double chi_squared = 0;
  double rest_seen = 0;
  double rest_expected = 0;
  int64_t cells = 0;
  for (int64_t token = 0; token < 61; ++token) {
    const auto seen = static_cast<double>(most->second[static_cast<size_t>(token)]);
    const double wanted = expected[token].item<double>();
    if (wanted < 5) {
      rest_seen += seen;
      rest_expected += wanted;
      continue;
    }
    chi_squared += (seen - wanted) * (seen - wanted) / wanted;
    ++cells;
  }
  if (rest_expected > 0) chi_squared += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
  // Mean `cells`, deviation sqrt(2 cells): four deviations above are exceeded once in ten thousand.
  EXPECT_LT(chi_squared, static_cast<double>(cells) + 4 * std::sqrt(2.0 * static_cast<double>(cells)) + 4);
}

TEST_F(SpeculativeDecoderTest, EndsWithAStopToken) {
  const auto model = this->model(at::kFloat);
  SpeculativeOptions options{.drafts = 0, .max_new_tokens = 40, .sampling = {.temperature = 0}};
  const auto whole = SpeculativeDecoder(*model).generate(prompt_, options);
  options.drafts = 4;
  options.stop_tokens = {whole[9]};
  const auto first = std::ranges::find(whole, whole[9]);
  EXPECT_EQ(SpeculativeDecoder(*model).generate(prompt_, options), std::vector<int32_t>(whole.begin(), first + 1));
}

TEST_F(SpeculativeDecoderTest, RefusesDraftsWithoutAModuleAndAnswersBeyondTheContext) {
  const auto without = model(at::kFloat, false);
  EXPECT_THROW(SpeculativeDecoder(*without).generate(prompt_, {.max_new_tokens = 4}), core::Error);
  EXPECT_NO_THROW(SpeculativeDecoder(*without).generate(prompt_, {.drafts = 0, .max_new_tokens = 4}));
  const auto with = model(at::kFloat);
  EXPECT_THROW(SpeculativeDecoder(*with).generate({}, {.max_new_tokens = 4}), core::Error);
  EXPECT_THROW(SpeculativeDecoder(*with).generate(prompt_, {.max_new_tokens = 124}), core::Error);
  EXPECT_THROW(SpeculativeDecoder(*with).generate(prompt_, {.drafts = -1}), core::UsageError);
}

}  // namespace
}  // namespace distill::teacher
