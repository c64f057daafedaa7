#include "distill/evaluation.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "data/trace_reader.h"
#include "distill/capture.h"
#include "tests/distill/tiny_model_folder.h"
#include "tests/nn/letter_tokenizer.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

constexpr int64_t kVocab = 50;

std::shared_ptr<nn::CausalLM> tiny_model(uint64_t seed) {
  nlohmann::json config = tiny_config(kVocab, 2);
  config["initializer_range"] = 0.3;
  return student::make_dense_model(config, {.compute = at::kFloat}, seed);
}

std::shared_ptr<const data::TraceReader> capture(nn::CausalLM& teacher, const char* targets,
                                                 const std::filesystem::path& folder) {
  data::TraceProvenance provenance = data::sample_provenance(targets, kVocab);
  provenance.sampling.max_new_tokens = 40;
  provenance.tokenizer = "letters";
  provenance.chat_template = "";
  std::vector<data::Prompt> prompts;
  for (int i = 0; i < 20; ++i) {
    prompts.push_back(
        {.id = fmt::format("p{}", i), .text = std::string(static_cast<size_t>(1 + i % 7), 'a'), .line = 1});
  }
  capture_traces({.model = teacher,
                  .tokenizer = std::make_shared<nn::LetterTokenizer>(),
                  .chat_template = nullptr,
                  .stop_tokens = {0}},
                 prompts, provenance, {.directory = folder, .samples = 6});
  return std::make_shared<const data::TraceReader>(data::TraceReader::open(folder));
}

// Sampled distributions are further from any model than the whole ones that they stand for.
TEST(Evaluation, OfSampledTargetsTellsTheDivergenceOfWholeOnes) {
  at::set_num_threads(1);
  const TemporaryFolder folder{TemporaryFolder::memory()};
  const auto teacher = tiny_model(1), model = tiny_model(2);
  for (const char* targets : {"threshold:4", "sampled:6", "hybrid:2+3"}) {
    const auto traces = capture(*teacher, targets, folder.path() / targets);
    const auto divergence = [&](const Objective& objective, nn::CausalLM& of) {
      data::Batcher batcher(traces, {.max_tokens = 1024});
      return evaluate_targets(of, batcher, objective, nullptr).divergence();
    };
    const Objective stored({}, *traces, model->shape(), 0), whole({}, {{.model = teacher}});
    EXPECT_GT(traces->divergence_excess(), 0.3) << targets;
    EXPECT_NEAR(divergence(stored, *teacher), 0, 0.06) << targets;
    EXPECT_NEAR(divergence(stored, *model), divergence(whole, *model), 0.06) << targets;
  }
}

}  // namespace
}  // namespace distill
