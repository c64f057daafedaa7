#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/option_checks.h"
#include "core/cpu_count.h"
#include "core/error.h"
#include "core/interrupt.h"
#include "core/local_ranks.h"
#include "core/progress.h"
#include "core/rank_environment.h"
#include "data/model_files.h"
#include "data/trace_reader.h"
#include "distill/load_model.h"
#include "distill/recipe.h"
#include "distill/student_setup.h"
#include "distill/trainer.h"
#include "nn/rank_group.h"

namespace distill::cli {
namespace {

struct Options {
  std::filesystem::path data;
  StudentSource student;
  std::filesystem::path out;
  std::filesystem::path recipe;
  std::optional<int64_t> steps;
  std::optional<uint64_t> seed;
  std::optional<double> learning_rate;
  std::optional<int64_t> batch_tokens;
  std::optional<int64_t> micro_batch_tokens;
  std::optional<std::string> dtype;
  int processes = 1;
  std::vector<std::filesystem::path> online;
  std::vector<double> online_weights;
  bool hard_labels = false;
  bool json = false;
};

// The recipe's file with what the command line says on top.
Recipe make_recipe(const Options& options) {
  Recipe recipe = options.recipe.empty() ? Recipe() : Recipe::from_file(options.recipe);
  if (options.steps) recipe.schedule.steps = *options.steps;
  if (options.seed) recipe.seed = *options.seed;
  if (options.learning_rate) recipe.schedule.peak = *options.learning_rate;
  if (options.batch_tokens) recipe.batch_tokens = *options.batch_tokens;
  if (options.micro_batch_tokens) recipe.micro_batch_tokens = *options.micro_batch_tokens;
  if (options.dtype) recipe.compute = parse_precision(*options.dtype);
  if (options.hard_labels) recipe.objective.hard_label_weight = 1.0;
  recipe.micro_batch_tokens = std::min(recipe.micro_batch_tokens, recipe.batch_tokens);
  return Recipe::from_json(recipe.to_json(), "command line");
}

void print(const TrainingSummary& summary, const Options& options) {
  if (options.json) {
    std::printf("%s\n", summary.to_json().dump().c_str());
    return;
  }
  const auto line = [](const char* name, const std::string& value) { std::printf("%-11s %s\n", name, value.c_str()); };
  line("steps", summary.resumed_from > 0 ? fmt::format("{}, continued from {}", summary.steps, summary.resumed_from)
                                         : fmt::format("{}", summary.steps));
  line("tokens", fmt::format("{} in all, {:.0f} tokens/s, {:.1f} % of the time waiting for data, {:.1f} % of the room "
                             "in batches used",
                             core::format_count(static_cast<double>(summary.tokens)), summary.tokens_per_second,
                             100 * summary.loader_wait_share, 100 * summary.packing_share));
  if (summary.skipped > 0) {
    line("guard",
         fmt::format("{} steps skipped, {} times back to the last checkpoint", summary.skipped, summary.rollbacks));
  }
  if (summary.stopped_early) line("ended", "early, since the held-out loss no longer improved");
  if (summary.validation) {
    line("held out", fmt::format("loss {:.4f}, KL {:.4f}, perplexity {:.3f}, agreement {:.1f} %",
                                 summary.validation->loss(), summary.validation->divergence(),
                                 summary.validation->perplexity(), 100 * summary.validation->agreement()));
  }
  line("checkpoint", summary.checkpoint.string());
  if (!summary.report.empty()) line("report", summary.report.string());
}

// The models that score the tokens during training, checked against the student.
std::vector<OnlineTeacher> load_teachers(const Options& options, const Student& student, c10::ScalarType compute) {
  if (!options.online_weights.empty() && options.online_weights.size() != options.online.size()) {
    core::fail_usage("--online-weights: {} for {} teachers", options.online_weights.size(), options.online.size());
  }
  const double sum = std::accumulate(options.online_weights.begin(), options.online_weights.end(), 0.0);
  std::vector<OnlineTeacher> teachers;
  for (size_t i = 0; i < options.online.size(); ++i) {
    const auto files = data::ModelFiles::open(options.online[i]);
    core::check(files.tokenizer()->fingerprint() == student.tokenizer->fingerprint(),
                "{}: a teacher that scores the student's tokens must have the student's tokenizer",
                options.online[i].string());
    const double equal = 1.0 / static_cast<double>(options.online.size());
    teachers.push_back({.model = load_model(files, {.compute = compute}),
                        .weight = sum > 0 ? options.online_weights[i] / sum : equal,
                        .path = files.path().string(),
                        .weights_fingerprint = files.weights()->fingerprint(),
                        .config_fingerprint = files.config_fingerprint()});
    const int64_t vocab_size = student.model->shape().vocab_size;
    core::check(teachers.back().model->shape().vocab_size <= vocab_size,
                "{}: the teacher's vocabulary of {} is larger than the student's of {}", options.online[i].string(),
                teachers.back().model->shape().vocab_size, vocab_size);
  }
  return teachers;
}

// This very command once for each rank, where the environment then says that it is one.
void start_ranks(int count) {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> arguments;
  for (std::string word; std::getline(file, word, '\0');) arguments.push_back(word);
  core::check(!arguments.empty(), "cannot read /proc/self/cmdline to start the ranks");
  arguments[0] = "/proc/self/exe";
  if (std::ranges::none_of(arguments, [](const auto& word) { return word.starts_with("--threads"); })) {
    arguments.insert(arguments.end(), {"--threads", std::to_string(std::max(1, core::available_cpus() / count))});
  }
  core::run_local_ranks(count, arguments);
}

void train_as_rank(Options& options, const Recipe& recipe, nn::RankGroup* ranks) {
  const auto traces = std::make_shared<const data::TraceReader>(data::TraceReader::open(options.data));
  const OtherTokenizer other_tokenizer = recipe.objective.other_tokenizer;
  options.student.seed = recipe.seed;
  Student student =
      make_student(options.student, *traces, recipe.compute, recipe.recompute_activations, other_tokenizer);
  const auto student_traces = traces_for(student, options.student, traces, other_tokenizer);
  auto teachers = load_teachers(options, student, recipe.compute);
  const TrainingSummary summary = train({.student = *student.model,
                                         .package = std::move(student.package),
                                         .traces = student_traces,
                                         .run = options.out,
                                         .recipe = recipe,
                                         .teachers = std::move(teachers),
                                         .tokenizer = student.tokenizer,
                                         .stop_tokens = student.stop_tokens,
                                         .ranks = ranks});
  if (ranks != nullptr && ranks->rank() != 0) return;
  print(summary, options);
  if (summary.interrupted) {
    std::fprintf(stderr, "distill: stopped at step %lld of %lld; run the same command again to go on\n",
                 static_cast<long long>(summary.steps), static_cast<long long>(recipe.schedule.steps));
  }
}

void run(Options options) {
  core::install_interrupt_handlers();
  core::end_with_launcher();
  const Recipe recipe = make_recipe(options);
  const auto environment = core::rank_environment();
  if (!environment && options.processes > 1) return start_ranks(options.processes);
  if (!environment) return train_as_rank(options, recipe, nullptr);
  nn::RankGroup ranks(*environment);
  try {
    train_as_rank(options, recipe, &ranks);
  } catch (const std::exception& error) {
    ranks.report_failure(error.what());
    throw;
  }
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto* const command = app.add_subcommand(
      "train",
      "Example: distill train --data traces --student student.json --out run --steps 500\n\n"
      "Trains a student on a teacher's traces. The student is a config.json of its own (begun at random, or with\n"
      "--init-from-teacher as a piece of the teacher) or a model to go on with. Metrics and checkpoints go to --out; "
      "run\n"
      "again, an unfinished run is continued with bitwise the same result. Ctrl-C or SIGTERM ends it with a "
      "checkpoint.");
  const auto options = std::make_shared<Options>();
  command->add_option("--data", options->data, "Directory of trace shards")->required();
  command->add_option("--student", options->student.student, "CONFIG.json of a new student, or a model to begin with")
      ->required();
  command->add_option("--out", options->out, "Directory of the run, to make or continue")->required();
  command->add_option("--recipe", options->recipe, "YAML file of settings; recipes/small.yaml explains them");
  command->add_option("--steps", options->steps, "Steps of the optimizer")->check(positive());
  command->add_flag("--hard-labels", options->hard_labels,
                    "Learn from the teacher's tokens alone, not its distributions");
  command->add_option("--seed", options->seed, "Of the order of documents, the held-out prompts and fresh weights");
  command->add_option("--learning-rate", options->learning_rate, "At its peak");
  command->add_option("--batch-tokens", options->batch_tokens, "Tokens per step of the optimizer")->check(positive());
  command->add_option("--micro-batch-tokens", options->micro_batch_tokens, "Tokens computed at a time")
      ->check(positive());
  command->add_option("--dtype", options->dtype, "What to compute in: bf16 or fp32")
      ->check(CLI::IsMember({"fp32", "bf16"}));
  command
      ->add_option("--nproc", options->processes,
                   "Processes on this machine that share the work; several machines: torchrun, srun or mpirun")
      ->check(CLI::Range(1, 1024));
  command->add_option("--teacher", options->student.teacher,
                      "Where the teacher is now, for its tokenizer; the traces say where it was");
  command->add_option("--tokenizer", options->student.tokenizer,
                      "Model whose tokenizer and chat template a new student gets, instead of the teacher's; needs a\n"
                      "recipe with other_tokenizer under objective");
  command->add_option("--online", options->online,
                      "Teachers that score the tokens during training, instead of the traces' stored distributions");
  command->add_option("--online-weights", options->online_weights, "Of the teachers' divergences; equal by default")
      ->check(positive_number());
  command->add_flag("--init-from-teacher", options->student.initialise_from_teacher,
                    "Begin a new student as a piece of the teacher");
  command->add_flag("--json", options->json, "Print the summary as one JSON object");
  command->callback([options] { run(*options); });
}

}  // namespace distill::cli
