#include "distill/answer_sampler.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <utility>

#include "core/philox.h"
#include "data/packing.h"
#include "kernels/head_loss/head_loss.h"
#include "nn/generation_engine.h"

namespace distill {
namespace {

// Prompts and answers as a batch.
class BatchWriter {
 public:
  // The first `positions` of a prompt with its answer.
  void add(std::span<const int32_t> prompt, std::span<const int32_t> answer, size_t positions, bool own) {
    std::vector<int32_t> tokens(prompt.begin(), prompt.end());
    tokens.insert(tokens.end(), answer.begin(), answer.end());
    const auto begin = static_cast<int64_t>(tokens_.size());
    for (size_t i = 0; i < positions; ++i) {
      const bool completion = i + 1 >= prompt.size();
      if (completion) rows_.push_back(begin + static_cast<int64_t>(i));
      tokens_.push_back(tokens[i]);
      positions_.push_back(static_cast<int64_t>(i));
      labels_.push_back(completion && !own ? tokens[i + 1] : kernels::kIgnoredLabel);
    }
    offsets_.push_back(static_cast<int32_t>(tokens_.size()));
  }

  data::TrainingBatch finish() const {
    data::TrainingBatch batch;
    batch.tokens = at::tensor(tokens_, at::kLong);
    batch.positions = at::tensor(positions_, at::kLong);
    batch.sequence_offsets = at::tensor(offsets_, at::kInt);
    batch.labels = at::tensor(labels_, at::kLong);
    batch.target_rows = at::tensor(rows_, at::kLong);
    return batch;
  }

 private:
  std::vector<int64_t> tokens_, positions_, labels_, rows_;
  std::vector<int32_t> offsets_{0};
};

}  // namespace

std::vector<std::vector<int32_t>> write_answers(nn::CausalLM& writer, std::span<const data::TraceDocument> documents,
                                                const nn::GenerateOptions& options) {
  std::vector<std::vector<int32_t>> answers(documents.size());
  nn::GenerationEngine engine(writer, nullptr);
  size_t next = 0;
  const auto source = [&]() -> std::optional<nn::GenerationRequest> {
    if (next == documents.size()) return {};
    const auto prompt = documents[next].prompt();
    // The sample's number says which document an answer belongs to, since prompts may repeat.
    return nn::GenerationRequest{.id = documents[next].key.prompt_id,
                                 .prompt = {prompt.begin(), prompt.end()},
                                 .samples = {static_cast<uint32_t>(next++)},
                                 .options = options};
  };
  engine.run(source, [&](nn::Completion&& answer) { answers[answer.sample] = std::move(answer.tokens); },
             {.interrupted = [] { return false; }});
  return answers;
}

AnswerSampler::AnswerSampler(std::shared_ptr<const data::TraceSource> traces, const OnPolicyOptions& options,
                             std::vector<int32_t> stop_tokens, int64_t max_tokens, uint64_t seed)
    : traces_(std::move(traces)),
      options_(options),
      stop_tokens_(std::move(stop_tokens)),
      max_tokens_(max_tokens),
      seed_(seed) {}

AnswerSource AnswerSampler::source(int64_t step, int64_t index) const {
  core::Philox random(seed_, core::stream_id("answer source", static_cast<uint64_t>(step)),
                      static_cast<uint64_t>(index));
  const double drawn = random.next_double();
  if (drawn < options_.student_share) return AnswerSource::kStudent;
  return drawn < options_.student_share + options_.teacher_share ? AnswerSource::kTeacher : AnswerSource::kTraces;
}

std::vector<data::TrainingBatch> AnswerSampler::rewrite(const data::TrainingBatch& batch, nn::CausalLM& writer,
                                                        bool own, int64_t step, int64_t index) const {
  const c10::NoGradGuard no_grad;
  std::vector<data::TraceDocument> documents;
  for (const size_t document : batch.documents) documents.push_back(traces_->read_document(document));
  const uint64_t stream = core::stream_id("answers", static_cast<uint64_t>(step) << 20 ^ static_cast<uint64_t>(index));
  const auto answers = write_answers(writer, documents,
                                     {.sampling = {.temperature = options_.temperature},
                                      .max_new_tokens = options_.max_new_tokens,
                                      .seed = seed_ ^ stream,
                                      .stop_tokens = stop_tokens_});
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < answers.size(); ++i) {
    const size_t tokens = documents[i].prompt().size() + answers[i].size();
    lengths.push_back(std::min(static_cast<int64_t>(tokens) - 1, max_tokens_));
  }
  const auto& markers = traces_->provenance().reasoning;
  std::vector<data::TrainingBatch> batches;
  for (auto& bin : data::pack(lengths, max_tokens_)) {
    std::ranges::sort(bin);
    BatchWriter built;
    for (const uint32_t i : bin) built.add(documents[i].prompt(), answers[i], static_cast<size_t>(lengths[i]), own);
    data::TrainingBatch& result = batches.emplace_back(built.finish());
    // Nobody has verified these answers; they count fully.
    result.verdicts.assign(bin.size(), data::Verdict::kCorrect);
    for (const uint32_t i : bin) {
      result.documents.push_back(batch.documents[i]);
      result.reasoning_targets.push_back(
          markers ? static_cast<int64_t>(data::reasoning_length(documents[i].prompt(), answers[i], *markers)) : 0);
    }
  }
  return batches;
}

}  // namespace distill
