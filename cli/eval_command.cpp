#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/commands.h"
#include "cli/option_checks.h"
#include "core/error.h"
#include "core/interrupt.h"
#include "core/progress.h"
#include "data/batcher.h"
#include "data/prompts.h"
#include "data/trace_reader.h"
#include "distill/checkpoint.h"
#include "distill/evaluation.h"
#include "distill/recipe.h"
#include "distill/task_accuracy.h"
#include "distill/text_model.h"

namespace distill::cli {
namespace {

struct Options {
  std::filesystem::path model;
  std::filesystem::path data;
  bool held_out = false;
  int64_t batch_tokens = 4096;
  std::filesystem::path task;
  TaskOptions task_options;
  size_t limit = 0;
  std::string dtype = "bf16";
  bool json = false;
};

// Which documents to look at: all, or those that the run of this checkpoint kept from training.
data::BatcherOptions choose_documents(const Options& options, const data::ModelFiles& files) {
  data::BatcherOptions choice{.max_tokens = options.batch_tokens};
  if (!options.held_out) return choice;
  const Recipe recipe = read_checkpoint_recipe(files.path());
  if (recipe.validation_share == 0) core::fail_usage("--held-out: the run of {} kept nothing", files.path().string());
  choice.seed = recipe.seed;
  choice.validation_share = recipe.validation_share;
  choice.validation = true;
  return choice;
}

void print_row(const char* name, const std::string& value) {
  std::printf("%-11s %s\n", name, value.c_str());
}

void print(const Evaluation& evaluation) {
  print_row("documents", fmt::format("{}, {} tokens, {} of them in completions", evaluation.documents,
                                     core::format_count(static_cast<double>(evaluation.tokens)),
                                     core::format_count(static_cast<double>(evaluation.sums.targets))));
  print_row("perplexity",
            fmt::format("{:.4f} ({:.4f} nats per token)", evaluation.perplexity(), evaluation.cross_entropy()));
  print_row("KL", fmt::format("{:.4f} nats per token from the teacher", evaluation.divergence()));
  print_row("agreement",
            fmt::format("{:.2f} % of tokens with the teacher's first choice", 100 * evaluation.agreement()));
}

void print(const TaskAccuracy& task) {
  print_row("task", fmt::format("{} of {} answers correct ({:.1f} %), {} cut short", task.correct_answers(),
                                task.answers(), 100 * task.pass(1), task.unfinished));
  if (task.samples == 1) return;
  print_row(
      "", fmt::format("{:.1f} % of prompts with a correct answer in {}", 100 * task.pass(task.samples), task.samples));
  if (task.votes > 0) print_row("", fmt::format("{:.1f} % by majority vote", 100 * task.majority()));
}

Evaluation evaluate_data(const Options& options, const TextModel& model) {
  const auto traces = std::make_shared<const data::TraceReader>(data::TraceReader::open(options.data));
  traces->require(model.tokenizer->fingerprint(), model.model->shape().vocab_size);
  data::Batcher batcher(traces, choose_documents(options, model.files));
  core::Progress progress("evaluating", batcher.documents(), "documents");
  return evaluate_targets(*model.model, batcher, Objective({}, *traces), &progress);
}

TaskAccuracy evaluate_task(const Options& options, const TextModel& model) {
  auto prompts = data::read_prompts(options.task);
  if (options.limit > 0 && options.limit < prompts.size()) prompts.resize(options.limit);
  core::Progress progress("answering", prompts.size() * static_cast<uint64_t>(options.task_options.samples), "answers");
  return measure_task(model, prompts, options.task_options, &progress);
}

void run(const Options& options) {
  core::install_interrupt_handlers();
  if (options.data.empty() && options.task.empty()) core::fail_usage("eval needs --data, --task or both");
  const TextModel model = load_text_model(
      options.model, {.compute = options.dtype == "fp32" ? c10::ScalarType::Float : c10::ScalarType::BFloat16});
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!options.data.empty()) {
    const Evaluation evaluation = evaluate_data(options, model);
    json = evaluation.to_json();
    if (!options.json) print(evaluation);
  }
  if (!options.task.empty()) {
    const TaskAccuracy task = evaluate_task(options, model);
    json["task"] = task.to_json();
    if (!options.json) print(task);
  }
  if (options.json) std::printf("%s\n", json.dump().c_str());
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto* const command = app.add_subcommand(
      "eval",
      "Example: distill eval --model run --data traces --held-out --json\n\n"
      "Measures a model on a teacher's traces: perplexity of the completions, KL divergence from the teacher's stored\n"
      "distributions and how often both would choose the same token. With --task, also how many prompts it answers "
      "correctly.");
  const auto options = std::make_shared<Options>();
  command->add_option("--model", options->model, "Run, checkpoint, Hugging Face directory or GGUF file")->required();
  command->add_option("--data", options->data, "Directory of trace shards");
  command->add_option("--task", options->task,
                      "JSON lines of prompts with \"answer\" and \"verifier\", to be answered and checked");
  command->add_flag("--held-out", options->held_out, "Only the documents that the model's own run kept from training");
  command->add_option("--batch-tokens", options->batch_tokens, "Tokens computed at a time; longer documents are cut")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24))
      ->capture_default_str();
  command->add_option("--max-new-tokens", options->task_options.max_new_tokens, "Longest answer to a task's prompt")
      ->check(positive())
      ->capture_default_str();
  command->add_option("--samples", options->task_options.samples, "Answers to each prompt of the task")
      ->check(positive())
      ->capture_default_str();
  command
      ->add_option("--temperature", options->task_options.temperature,
                   "Of the task's answers; 0 takes the most probable token each time, so that all samples are equal")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--seed", options->task_options.seed, "The same seed draws the same answers")
      ->capture_default_str();
  command->add_option("--limit", options->limit, "Use only the first N prompts of the task; 0 uses all")
      ->capture_default_str();
  command->add_option("--batch", options->task_options.batch, "Answers generated side by side")
      ->check(positive())
      ->capture_default_str();
  add_chat_template_option(*command, options->task_options.chat_template);
  command->add_option("--dtype", options->dtype, "What to compute in: bf16 or fp32")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print one JSON object");
  command->callback([options] { run(*options); });
}

}  // namespace distill::cli
