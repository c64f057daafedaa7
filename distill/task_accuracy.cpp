#include "distill/task_accuracy.h"

#include <unordered_map>

#include "core/error.h"
#include "core/interrupt.h"
#include "data/reasoning.h"
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

}  // namespace

nlohmann::ordered_json TaskAccuracy::to_json() const {
  return {{"prompts", prompts}, {"correct", correct}, {"accuracy", accuracy()}, {"unfinished", unfinished}};
}

TaskAccuracy measure_task(const TextModel& model, std::span<const data::Prompt> prompts, const TaskOptions& options,
                          core::Progress* progress) {
  std::shared_ptr<const data::ChatTemplate> chat_template;
  std::unordered_map<std::string, size_t> index_of;
  for (size_t i = 0; i < prompts.size(); ++i) {
    check_prompt(prompts[i]);
    index_of[prompts[i].id] = i;
    if (!prompts[i].text && !chat_template) chat_template = model.files.chat_template(options.chat_template);
  }
  const nn::GenerateOptions generate{.sampling = {.temperature = 0},
                                     .max_new_tokens = options.max_new_tokens,
                                     .seed = 0,
                                     .stop_tokens = model.stop_tokens,
                                     .stop_strings = {}};
  nn::GenerationEngine engine(*model.model, model.tokenizer, {.max_sequences = options.batch});
  const auto reasoning = data::find_reasoning_tokens(*model.tokenizer);
  TaskAccuracy result{.prompts = prompts.size(), .verdicts = std::vector<bool>(prompts.size())};
  size_t next = 0;
  const auto source = [&]() -> std::optional<nn::GenerationRequest> {
    if (next == prompts.size()) return std::nullopt;
    const data::Prompt& prompt = prompts[next++];
    nn::GenerationRequest request{.id = prompt.id, .prompt = {}, .samples = {0}, .options = generate};
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
    const bool correct = data::verify(prompt.verifier, *prompt.answer, answer) == data::Verdict::kCorrect;
    result.verdicts[index] = correct;
    result.correct += correct ? 1 : 0;
    result.unfinished += completion.finish_reason == data::FinishReason::kLength ? 1 : 0;
    if (progress != nullptr) progress->advance();
  };
  if (engine.run(source, sink) == nn::GenerationEngine::Outcome::kInterrupted) {
    throw core::Interrupted("stopped before the task was complete; nothing is kept of it");
  }
  return result;
}

}  // namespace distill
