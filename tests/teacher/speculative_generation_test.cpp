#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "nn/generation_engine.h"
#include "teacher/deepseek_model.h"
#include "tests/teacher/tiny_deepseek.h"

namespace distill::teacher {
namespace {

using Answers = std::map<std::pair<std::string, uint32_t>, std::vector<int32_t>>;

// A model in which the next token hangs mostly on the last one, and a prediction module that looks at that too: drafts
// are often, not always right.
class SpeculativeGeneration : public testing::Test {
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
    const at::Tensor of_hidden = tensors["model.layers.3.eh_proj.weight"].narrow(1, 72, 72);
    tensors["model.layers.3.eh_proj.weight"] = at::cat({2 * at::eye(72), 0.15 * of_hidden}, 1).to(compute).contiguous();
    if (!with_module) std::erase_if(tensors, [](const auto& e) { return e.first.starts_with("model.layers.3."); });
    return std::make_unique<DeepseekModel>(config, std::make_shared<MemoryWeights>(tensors),
                                           nn::ModelOptions{.compute = compute});
  }

  // Prompts of several lengths, `samples` answers each.
  static std::vector<nn::GenerationRequest> requests(const nn::GenerateOptions& options, uint32_t samples = 1) {
    std::vector<nn::GenerationRequest> result;
    for (int32_t i = 0; i < 5; ++i) {
      nn::GenerationRequest request{.id = fmt::format("p{}", i), .prompt = {}, .samples = {}, .options = options};
      for (int32_t t = 0; t < 3 + 7 * i; ++t) request.prompt.push_back((7 + 12 * t + 5 * i) % 61);
      for (uint32_t sample = 0; sample < samples; ++sample) request.samples.push_back(sample);
      result.push_back(std::move(request));
    }
    return result;
  }

  static Answers answer(DeepseekModel& model, const std::vector<nn::GenerationRequest>& requests,
                        const nn::EngineOptions& options, nn::EngineStatistics* statistics = nullptr,
                        const nn::EngineHooks& hooks = {}) {
    nn::GenerationEngine engine(model, nullptr, options);
    Answers answers;
    size_t next = 0;
    engine.run([&]() { return next < requests.size() ? std::optional(requests[next++]) : std::nullopt; },
               [&](nn::Completion&& completion) {
                 answers[{completion.id, completion.sample}] = std::move(completion.tokens);
               },
               hooks);
    if (statistics != nullptr) *statistics = engine.statistics();
    return answers;
  }
};

TEST_F(SpeculativeGeneration, GivesTheGreedyAnswersTokenForToken) {
  for (const auto compute : {at::kFloat, at::kBFloat16}) {
    const auto model = this->model(compute);
    const auto requests = this->requests({.sampling = {.temperature = 0}, .max_new_tokens = 60});
    nn::EngineStatistics plain;
    const Answers expected = answer(*model, requests, {.max_sequences = 1, .draft_tokens = 0}, &plain);
    ASSERT_EQ(expected.at({"p0", 0}).size(), 60u);
    for (const int64_t drafts : {1, 2, 5}) {
      for (const int64_t batch : {1, 4}) {
        nn::EngineStatistics statistics;
        EXPECT_EQ(answer(*model, requests, {.max_sequences = batch, .draft_tokens = drafts}, &statistics), expected)
            << compute << ", " << drafts << " drafts, batch " << batch;
        EXPECT_GT(statistics.drafts[0].acceptance(), 0.2);
        EXPECT_LT(statistics.steps, plain.steps);
      }
    }
  }
}

// That drafts hang on the right tokens, hidden states and cache entries shows only in how many are accepted.
TEST_F(SpeculativeGeneration, DraftsWhatTheModuleSaysOfWholeAnswers) {
  const auto model = this->model(at::kFloat);
  const auto requests = this->requests({.sampling = {.temperature = 0}, .max_new_tokens = 60});
  nn::EngineStatistics statistics;
  const Answers answers =
      answer(*model, requests, {.max_sequences = 3, .block_size = 4, .draft_tokens = 1}, &statistics);
  nn::DraftCount expected;
  for (const auto& request : requests) {
    std::vector<int32_t> tokens = request.prompt;
    const auto& drawn = answers.at({request.id, 0});
    tokens.insert(tokens.end(), drawn.begin(), drawn.end());
    const std::vector<int32_t> next(tokens.begin() + 1, tokens.end());
    const at::Tensor hidden = model->forward(nn::PackedBatch::from_sequences({tokens}));
    const at::Tensor states = model->mtp_forward(0, nn::PackedBatch::from_sequences({next}),
                                                 hidden.narrow(0, 0, hidden.size(0) - 1), nullptr, nullptr);
    const at::Tensor drafts = model->mtp_logits(0, states).argmax(1);
    // A pass begins behind `known` tokens. It checks a draft if it may draw two.
    size_t known = request.prompt.size() + 1;
    while (known + 1 < tokens.size()) {
      const bool right = drafts[static_cast<int64_t>(known) - 2].item<int64_t>() == tokens[known];
      ++expected.checked;
      if (right) ++expected.accepted;
      known += right ? 2 : 1;
    }
  }
  EXPECT_EQ(statistics.drafts[0].checked, expected.checked);
  EXPECT_EQ(statistics.drafts[0].accepted, expected.accepted);
  EXPECT_GT(expected.accepted, expected.checked / 5);
  EXPECT_LT(expected.accepted, expected.checked);
}

TEST_F(SpeculativeGeneration, DrawsTheSameTokensAsPlainSamplingInAnyBatch) {
  const auto model = this->model(at::kFloat);
  const auto requests =
      this->requests({.sampling = {.temperature = 0.8, .top_p = 0.9}, .max_new_tokens = 24, .seed = 5}, 4);
  const Answers expected = answer(*model, requests, {.max_sequences = 1, .draft_tokens = 0});
  for (const int64_t batch : {1, 7}) {
    nn::EngineStatistics statistics;
    EXPECT_EQ(answer(*model, requests,
                     {.max_sequences = batch, .max_step_tokens = 16, .block_size = 4, .draft_tokens = 3}, &statistics),
              expected);
    EXPECT_GT(statistics.drafts[0].acceptance(), 0.05);
    EXPECT_LT(statistics.drafts[0].acceptance(), 1.0);
    EXPECT_GE(statistics.drafts[0].accepted, statistics.drafts[1].accepted);
  }
}

TEST_F(SpeculativeGeneration, ShowsTheHiddenStatesOfAcceptedTokensAsTheModelRunDirectlyGivesThem) {
  const auto model = this->model(at::kFloat);
  const auto requests = this->requests({.max_new_tokens = 24, .seed = 5}, 2);
  std::map<std::pair<std::string, uint32_t>, std::vector<at::Tensor>> seen;
  nn::EngineHooks hooks{.on_logits = [](const at::Tensor&, std::span<const nn::LogitsRow>) {},
                        .hidden_layers = {0, 2, 3}};
  hooks.on_hidden_states = [&](const at::Tensor& states, std::span<const nn::LogitsRow> rows) {
    for (size_t i = 0; i < rows.size(); ++i) {
      seen[{std::string(rows[i].id), rows[i].sample}].push_back(states[static_cast<int64_t>(i)].clone());
    }
  };
  nn::EngineStatistics statistics;
  const Answers answers = answer(*model, requests, {.max_sequences = 4, .draft_tokens = 3}, &statistics, hooks);
  EXPECT_LT(statistics.drafts[0].acceptance(), 1.0);
  for (const auto& request : requests) {
    for (const uint32_t sample : request.samples) {
      std::vector<int32_t> tokens = request.prompt;
      const auto& drawn = answers.at({request.id, sample});
      tokens.insert(tokens.end(), drawn.begin(), drawn.end());
      nn::LayerTap tap{.layers = {0, 2, 3}};
      model->forward_tapped(nn::PackedBatch::from_sequences({tokens}), nullptr, nullptr, tap);
      const at::Tensor expected =
          at::stack(tap.states, 1).slice(0, static_cast<int64_t>(request.prompt.size()) - 1, -1);
      const at::Tensor found = at::stack(seen.at({request.id, sample}));
      ASSERT_EQ(found.sizes(), expected.sizes());
      EXPECT_LT((found - expected).abs().max().item<double>(), 1e-4 * expected.abs().max().item<double>());
    }
  }
}

TEST_F(SpeculativeGeneration, DrawsTheSecondTokenFromTheModelsDistribution) {
  const auto model = this->model(at::kFloat);
  const std::vector<int32_t> prompt{7, 19, 4, 33, 58};
  nn::GenerationRequest request{
      .id = "p", .prompt = prompt, .samples = {}, .options = {.sampling = {.temperature = 0.5}, .max_new_tokens = 3}};
  for (uint32_t sample = 0; sample < 2000; ++sample) request.samples.push_back(sample);
  // Of answers that begin alike, the second tokens: chi-squared against the model's own probabilities.
  std::map<int32_t, std::vector<int64_t>> counts;
  for (const auto& [key, tokens] : answer(*model, {request}, {.max_sequences = 64, .draft_tokens = 2})) {
    auto& row = counts[tokens[0]];
    row.resize(61);
    ++row[static_cast<size_t>(tokens[1])];
  }
  const auto most = std::ranges::max_element(counts, {}, [](const auto& entry) {
    return std::accumulate(entry.second.begin(), entry.second.end(), int64_t{0});
  });
  const int64_t total = std::accumulate(most->second.begin(), most->second.end(), int64_t{0});
  ASSERT_GT(total, 100);
  std::vector<int32_t> context = prompt;
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

TEST_F(SpeculativeGeneration, EndsWithAStopTokenAmongTheDrafts) {
  const auto model = this->model(at::kFloat);
  nn::GenerateOptions options{.sampling = {.temperature = 0}, .max_new_tokens = 40};
  const Answers whole = answer(*model, requests(options), {.draft_tokens = 0});
  options.stop_tokens = {whole.at({"p0", 0})[9], whole.at({"p3", 0})[17]};
  const Answers expected = answer(*model, requests(options), {.draft_tokens = 0});
  EXPECT_NE(expected, whole);
  EXPECT_EQ(answer(*model, requests(options), {.draft_tokens = 4}), expected);
}

TEST_F(SpeculativeGeneration, RefusesDraftsWithoutAModule) {
  const auto without = model(at::kFloat, false);
  EXPECT_EQ(nn::GenerationEngine(*without, nullptr).statistics().drafts.size(), 0u);
  EXPECT_THROW(nn::GenerationEngine(*without, nullptr, {.draft_tokens = 1}), core::UsageError);
  EXPECT_EQ(nn::GenerationEngine(*model(at::kFloat), nullptr).statistics().drafts.size(), 1u);
}

}  // namespace
}  // namespace distill::teacher
