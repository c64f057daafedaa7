#include "distill/task_accuracy.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <unordered_map>

#include "core/error.h"
#include "core/interrupt.h"
#include "data/reasoning.h"
#include "data/verification_queue.h"
#include "data/verifier.h"
#include "nn/generation_engine.h"

namespace distill {
namespace {

// Finds what is wrong with a prompt before hours of generation.
void check_prompt(const data::Prompt& prompt) {
  core::with_context(fmt::format("prompt \"{}\" (line {})", prompt.id, prompt.line), [&] {
    core::check(prompt.answer.has_value() && !prompt.verifier.empty(),
                "a task needs \"answer\" and \"verifier\" for every prompt");
    data::check_verifier(prompt.verifier, *prompt.answer);
  });
}

// What a prompt was answered, and how often.
struct Votes {
  std::map<std::string, uint64_t> counts, first;  // first: the sample that gave it first
  std::map<std::string, bool> correct;

  void add(const std::string& answer, uint64_t sample, bool is_correct) {
    ++counts[answer];
    const auto [at, added] = first.try_emplace(answer, sample);
    at->second = std::min(at->second, sample);
    correct[answer] = is_correct;
  }
  bool winner_is_correct() const {
    const auto better = [&](const auto& a, const auto& b) {
      return a.second != b.second ? a.second < b.second : first.at(a.first) > first.at(b.first);
    };
    return !counts.empty() && correct.at(std::ranges::max_element(counts, better)->first);
  }
};

}  // namespace

uint64_t TaskAccuracy::correct_answers() const {
  return std::accumulate(correct.begin(), correct.end(), uint64_t{0});
}

double TaskAccuracy::pass(uint64_t k) const {
  double sum = 0;
  for (const uint64_t right : correct) {
    // All k wrong: (n - c choose k) / (n choose k).
    double all_wrong = 1;
    for (uint64_t i = 0; i < k; ++i) {
      const double wrong = static_cast<double>(samples - right) - static_cast<double>(i);
      all_wrong *= std::max(0.0, wrong) / static_cast<double>(samples - i);
    }
    sum += 1 - all_wrong;
  }
  return correct.empty() ? 0 : sum / static_cast<double>(correct.size());
}

nlohmann::ordered_json TaskAccuracy::to_json() const {
  nlohmann::ordered_json json{{"prompts", prompts()},
                              {"samples", samples},
                              {"correct", correct_answers()},
                              {"accuracy", pass(1)},
                              {"unfinished", unfinished}};
  if (samples == 1) return json;
  for (uint64_t k = 1; k < samples; k *= 2) json["pass"][std::to_string(k)] = pass(k);
  json["pass"][std::to_string(samples)] = pass(samples);
  json["majority"] = votes > 0 ? nlohmann::ordered_json(majority()) : nlohmann::ordered_json();
  return json;
}

TaskAccuracy measure_task(const TextModel& model, std::span<const data::Prompt> prompts, const TaskOptions& options,
                          core::Progress* progress) {
  if (options.samples < 1 || options.samples > UINT32_MAX) core::fail_usage("samples: {}", options.samples);
  std::shared_ptr<const data::ChatTemplate> chat_template;
  std::unordered_map<std::string, size_t> index_of;
  for (size_t i = 0; i < prompts.size(); ++i) {
    check_prompt(prompts[i]);
    index_of[prompts[i].id] = i;
    if (!prompts[i].text && !chat_template) chat_template = model.files.chat_template(options.chat_template);
  }
  const nn::GenerateOptions generate{.sampling = {.temperature = options.temperature},
                                     .max_new_tokens = options.max_new_tokens,
                                     .seed = options.seed,
                                     .stop_tokens = model.stop_tokens,
                                     .stop_strings = {}};
  nn::GenerationEngine engine(*model.model, model.tokenizer, {.max_sequences = options.batch});
  const auto reasoning = data::find_reasoning_tokens(*model.tokenizer);
  TaskAccuracy result;
  result.samples = static_cast<uint64_t>(options.samples);
  result.correct.resize(prompts.size());
  std::vector<Votes> votes(prompts.size());
  std::vector<uint32_t> samples(result.samples);
  std::iota(samples.begin(), samples.end(), 0u);
  data::VerificationQueue verification;
  size_t next = 0;
  const auto source = [&]() -> std::optional<nn::GenerationRequest> {
    if (next == prompts.size()) return std::nullopt;
    const data::Prompt& prompt = prompts[next++];
    nn::GenerationRequest request{.id = prompt.id, .prompt = {}, .samples = samples, .options = generate};
    core::with_context(fmt::format("line {}", prompt.line), [&] {
      request.prompt = data::encode_prompt(prompt, *model.tokenizer, chat_template.get());
      engine.check(request);
    });
    return request;
  };
  const auto sink = [&](nn::Completion&& completion) {
    const size_t index = index_of.at(completion.id);
    const data::Prompt& prompt = prompts[index];
    std::string answer = completion.text;
    if (reasoning) {
      const auto thought = data::reasoning_length(completion.prompt, completion.tokens, *reasoning);
      if (thought > 0) answer = model.tokenizer->decode(std::span(completion.tokens).subspan(thought), true);
    }
    result.unfinished += completion.finish_reason == data::FinishReason::kLength ? 1 : 0;
    auto given = data::extract_answer(prompt.verifier, answer);
    verification.add(prompt, std::move(answer),
                     [&, index, sample = completion.sample, given = std::move(given)](data::Verdict verdict) {
                       const bool correct = verdict == data::Verdict::kCorrect;
                       result.correct[index] += correct ? 1 : 0;
                       if (given) votes[index].add(*given, sample, correct);
                       if (progress != nullptr) progress->advance();
                     });
  };
  if (engine.run(source, sink) == nn::GenerationEngine::Outcome::kInterrupted) {
    throw core::Interrupted("stopped before the task was complete; nothing is kept of it");
  }
  verification.finish();
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (!data::compares_answers(prompts[i].verifier)) continue;
    ++result.votes;
    result.correct_votes += votes[i].winner_is_correct() ? 1 : 0;
  }
  return result;
}

}  // namespace distill
