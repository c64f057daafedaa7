#include "distill/quickstart.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <set>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "core/text_file.h"
#include "data/batcher.h"
#include "data/prompts.h"
#include "data/trace_reader.h"
#include "distill/export_model.h"
#include "distill/student_setup.h"
#include "distill/text_model.h"
#include "distill/trainer.h"
#include "nn/generation_engine.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// How much work a run is.
struct Scale {
  int64_t samples;  // answers per prompt
  int64_t max_new_tokens;
  int64_t steps;
};
constexpr Scale kQuick{.samples = 2, .max_new_tokens = 160, .steps = 720};
constexpr Scale kFull{.samples = 16, .max_new_tokens = 384, .steps = 20000};

constexpr const char* kStudentConfig = "student.json";
// Small batches: with so few tokens, the number of steps decides how far a student gets.
constexpr int64_t kBatchTokens = 512;
constexpr double kHeldOutShare = 0.1;  // of the prompts
constexpr size_t kSpeedPrompts = 16;   // answered side by side to measure speed
constexpr size_t kShownPrompts = 4;    // of these, answers that are shown
constexpr int64_t kShownTokens = 64;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

[[noreturn]] void stop() {
  throw core::Interrupted("stopped; run the same command again to go on");
}

Recipe recipe_for(const QuickstartOptions& options, const Scale& scale, double hard_label_weight) {
  Recipe recipe;
  recipe.objective.hard_label_weight = hard_label_weight;
  recipe.schedule.peak = 2e-3;
  recipe.schedule.steps = scale.steps;
  recipe.batch_tokens = kBatchTokens;
  recipe.micro_batch_tokens = kBatchTokens;
  recipe.validation_share = kHeldOutShare;
  recipe.validate_every = 0;
  recipe.checkpoint_every = options.full ? 500 : 120;
  recipe.keep_checkpoints = 1;
  recipe.seed = options.seed;
  return recipe;
}

// Of the teacher as it lies on disk.
uint64_t weight_bytes(const fs::path& path) {
  if (!fs::is_directory(path)) return fs::file_size(path);
  uint64_t bytes = 0;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.path().extension() == ".safetensors") bytes += entry.file_size();
  }
  return bytes;
}

// One quickstart while it runs.
class Quickstart {
 public:
  explicit Quickstart(const QuickstartOptions& options)
      : options_(options), scale_(options.full ? kFull : kQuick), prompts_(data::read_prompts(options.prompts)) {
    if (options.steps > 0) scale_.steps = options.steps;
  }

  QuickstartReport run();

 private:
  void capture();
  QuickstartModel train_student(const std::string& name, const fs::path& run, double hard_label_weight);
  data::Batcher held_out() const;
  void choose_questions();
  double teacher_cross_entropy();
  void answer(const TextModel& model, QuickstartModel& column) const;

  const QuickstartOptions& options_;
  Scale scale_;
  std::vector<data::Prompt> prompts_;
  TextModel teacher_{
      .files = data::ModelFiles::open(options_.teacher), .model = {}, .tokenizer = {}, .stop_tokens = {}};
  std::shared_ptr<const data::ChatTemplate> chat_template_;
  std::shared_ptr<const data::TraceReader> traces_;
  std::vector<const data::Prompt*> questions_;  // held out
  QuickstartReport report_;
};

void Quickstart::capture() {
  data::TraceProvenance provenance = describe_teacher(teacher_, chat_template_.get());
  provenance.sampling = {.max_new_tokens = scale_.max_new_tokens, .seed = options_.seed};
  provenance.targets = data::TargetSpec::parse(data::kDefaultTargets);
  provenance.command =
      fmt::format("distill quickstart --teacher {} --out {}", options_.teacher.string(), options_.out.string());
  provenance.version = options_.version;
  const fs::path directory = options_.out / "traces";
  report_.traces = capture_traces({.model = *teacher_.model,
                                   .tokenizer = teacher_.tokenizer,
                                   .chat_template = chat_template_,
                                   .stop_tokens = teacher_.stop_tokens},
                                  prompts_, provenance, {.directory = directory, .samples = scale_.samples});
  if (report_.traces.interrupted) stop();
  traces_ = std::make_shared<const data::TraceReader>(data::TraceReader::open(directory));
}

data::Batcher Quickstart::held_out() const {
  const Recipe recipe = recipe_for(options_, scale_, 0);
  return data::Batcher(traces_, {.max_tokens = recipe.micro_batch_tokens,
                                 .seed = recipe.seed,
                                 .validation_share = recipe.validation_share,
                                 .validation = true});
}

// Prompts of held-out traces in the order of the file.
void Quickstart::choose_questions() {
  data::Batcher batcher = held_out();
  report_.held_out_traces = batcher.documents();
  std::set<std::string> ids;
  while (const auto batch = batcher.next_in_epoch()) {
    for (const size_t document : batch->documents) ids.insert(traces_->prompt_id(document));
  }
  for (const auto& prompt : prompts_) {
    if (ids.contains(prompt.id) && questions_.size() < kSpeedPrompts) questions_.push_back(&prompt);
  }
  for (size_t i = 0; i < std::min(kShownPrompts, questions_.size()); ++i) {
    const data::Prompt& prompt = *questions_[i];
    report_.questions.push_back(prompt.text ? *prompt.text : prompt.messages.back().content);
  }
}

// Of its own answers: they were drawn from its distribution as it is, so this is its entropy on them.
double Quickstart::teacher_cross_entropy() {
  double log_probability = 0;
  int64_t tokens = 0;
  data::Batcher batcher = held_out();
  while (const auto batch = batcher.next_in_epoch()) {
    for (const size_t index : batch->documents) {
      const data::TraceDocument document = traces_->read_document(index);
      log_probability += document.log_probability;
      tokens += document.completion_length();
    }
  }
  return -log_probability / static_cast<double>(std::max<int64_t>(1, tokens));
}

QuickstartModel Quickstart::train_student(const std::string& name, const fs::path& run, double hard_label_weight) {
  const Recipe recipe = recipe_for(options_, scale_, hard_label_weight);
  const Student student = make_student({.student = options_.out / kStudentConfig,
                                        .teacher = options_.teacher,
                                        .initialise_from_teacher = true,
                                        .seed = options_.seed},
                                       *traces_, recipe.compute);
  core::log::info("training the student \"{}\" in {}", name, run.string());
  const TrainingSummary summary =
      train({.student = *student.model, .package = student.package, .traces = traces_, .run = run, .recipe = recipe});
  if (summary.interrupted) stop();
  report_.steps = summary.steps;
  report_.tokens_per_student = summary.tokens;

  QuickstartModel column{.name = name, .training_tokens_per_second = summary.tokens_per_second};
  data::Batcher batcher = held_out();
  const Objective objective({}, *traces_);
  column.held_out = evaluate_targets(*student.model, batcher, objective, nullptr);
  column.cross_entropy = column.held_out->cross_entropy();
  return column;
}

void Quickstart::answer(const TextModel& model, QuickstartModel& column) const {
  nn::GenerationEngine engine(*model.model, model.tokenizer, {.max_sequences = kSpeedPrompts});
  column.answers.resize(report_.questions.size());
  size_t next = 0;
  const auto start = Clock::now();
  const auto outcome = engine.run(
      [&]() -> std::optional<nn::GenerationRequest> {
        if (next == questions_.size()) return std::nullopt;
        const data::Prompt& prompt = *questions_[next++];
        return nn::GenerationRequest{.id = prompt.id,
                                     .prompt = data::encode_prompt(prompt, *model.tokenizer, chat_template_.get()),
                                     .options = {.sampling = {.temperature = 0},
                                                 .max_new_tokens = kShownTokens,
                                                 .seed = options_.seed,
                                                 .stop_tokens = model.stop_tokens}};
      },
      [&](nn::Completion&& completion) {
        for (size_t i = 0; i < column.answers.size(); ++i) {
          if (questions_[i]->id == completion.id) column.answers[i] = completion.text;
        }
      });
  if (outcome == nn::GenerationEngine::Outcome::kInterrupted) stop();
  column.generation_tokens_per_second =
      static_cast<double>(engine.statistics().generated_tokens) / seconds_since(start);
}

QuickstartReport Quickstart::run() {
  const auto start = Clock::now();
  fs::create_directories(options_.out);
  teacher_ = load_text_model(options_.teacher);
  if (std::ranges::any_of(prompts_, [](const auto& prompt) { return !prompt.text; })) {
    chat_template_ = teacher_.files.chat_template();
    core::check(chat_template_ != nullptr, "{} has no chat template, which the prompts of {} need",
                options_.teacher.string(), options_.prompts.string());
  }
  const nlohmann::json student =
      options_.student.empty() ? quickstart_student(teacher_.files.config()) : core::read_json_file(options_.student);
  core::write_file_atomically(options_.out / kStudentConfig, student.dump(2) + "\n");

  capture();
  choose_questions();
  QuickstartModel teacher{.name = "teacher", .bytes = weight_bytes(teacher_.files.path())};
  const auto weights = teacher_.files.weights();
  for (const auto& tensor : weights->tensors()) {
    teacher.parameters += std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
  }
  teacher.cross_entropy = teacher_cross_entropy();
  answer(teacher_, teacher);
  report_.models.push_back(std::move(teacher));

  const std::vector<std::pair<std::string, double>> students{{"distilled", 0.0}, {"hard-labels", 1.0}};
  for (const auto& [name, hard_label_weight] : students) {
    QuickstartModel column = train_student(name, options_.out / name, hard_label_weight);
    const ExportSummary exported =
        export_model({.model = options_.out / name, .out = options_.out / ("student-" + name), .overwrite = true});
    column.parameters = static_cast<int64_t>(exported.parameters);
    column.bytes = exported.bytes;
    answer(load_text_model(exported.out), column);
    report_.models.push_back(std::move(column));
  }
  report_.student = options_.out / "student-distilled";
  report_.seconds = seconds_since(start);
  core::write_file_atomically(options_.out / "report.json", report_.to_json().dump(2) + "\n");
  return std::move(report_);
}

}  // namespace

nlohmann::json quickstart_student(nlohmann::json teacher_config) {
  const auto at_most = [&](const char* key, int64_t limit) {
    teacher_config[key] = std::min(teacher_config.value(key, limit), limit);
  };
  at_most("num_hidden_layers", 3);
  at_most("intermediate_size", 512);
  return teacher_config;
}

QuickstartReport run_quickstart(const QuickstartOptions& options) {
  return Quickstart(options).run();
}

}  // namespace distill
