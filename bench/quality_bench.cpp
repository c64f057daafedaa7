// What students learn from each way to store a teacher's distributions: the same student, answers, order and number of
// tokens, with the targets alone exchanged. bench/quality_bench.py makes the answers, runs this and prints the table.
//   quality_bench TEACHER ANSWERS WORK TOKENS SEED ...
// ANSWERS are the teacher's own samples at temperature 1. One pass of the teacher over them writes a set of shards for
// each kind of target into WORK/targets, so that students read what a user's would, rounded weights included; "full"
// has the teacher beside it instead. Then each kind trains one student per seed with the trainer that `distill train`
// runs, and the teacher scores it on held-out prompts. A seed decides the fresh weights, the order of the answers and
// which prompts are held out, for all kinds alike.
// Appends one JSON object per student to WORK/results.jsonl; students that are there already are left out, an
// unfinished one goes on.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "core/progress.h"
#include "core/text_file.h"
#include "data/target_sampler.h"
#include "data/trace_reader.h"
#include "data/trace_shard.h"
#include "data/trace_writer.h"
#include "distill/evaluation.h"
#include "distill/load_model.h"
#include "distill/student_setup.h"
#include "distill/trainer.h"
#include "kernels/threads.h"

namespace distill::bench {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStored[] = {"topk:12",     "topk:128",     "sampled:50",
                                   "threshold:8", "threshold:16", "threshold:0.04"};
constexpr int64_t kBatchTokens = 512;        // per step, as in `distill quickstart`
constexpr double kHeldOutShare = 0.04;       // of the prompts
constexpr int64_t kEvaluationTokens = 2048;  // scored at a time

// One student to train for each seed.
struct Variant {
  std::string targets;   // "full", "hard", or how they are stored
  int64_t multiple = 1;  // times the tokens

  std::string name() const { return multiple > 1 ? fmt::format("{} x{}", targets, multiple) : targets; }
};

// Each group for all seeds before the next one.
std::vector<std::vector<Variant>> variants() {
  // How many more tokens the teacher's words alone need: each with a schedule of its own, so that all are finished
  // runs.
  return {{{"full"},
           {"hard"},
           {"topk:12"},
           {"topk:128"},
           {"sampled:50"},
           {"threshold:8"},
           {"threshold:16"},
           {"threshold:0.04"}},
          {{"hard", 2}},
          {{"hard", 4}}};
}

double bytes_per_token(const data::TraceReader& traces) {
  uint64_t bytes = 0;
  for (const auto& shard : traces.shards()) bytes += shard->file_bytes();
  return static_cast<double>(bytes) / static_cast<double>(traces.completion_tokens());
}

std::shared_ptr<const data::TraceReader> open_traces(const fs::path& path) {
  return std::make_shared<const data::TraceReader>(data::TraceReader::open(path));
}

[[noreturn]] void stop() {
  throw core::Interrupted("stopped; run the same command again to go on");
}

// The answers with the targets of every kind, each under `folder`/kind. What is there from an earlier run stays.
void write_targets(nn::CausalLM& teacher, const data::TraceReader& answers, const fs::path& folder) {
  std::vector<data::TraceProvenance> provenances;
  std::deque<data::TraceWriter> writers;
  for (const char* kind : kStored) {
    provenances.push_back(answers.provenance());
    provenances.back().targets = data::TargetSpec::parse(kind);
    writers.emplace_back(folder / kind, provenances.back(), data::TraceWriterOptions{.documents_per_sync = 1 << 10});
  }
  core::Progress progress("scoring answers", answers.size(), "answers");
  for (size_t i = 0; i < answers.size(); ++i, progress.advance()) {
    if (core::interrupt_requested()) stop();
    const data::TraceDocument document = answers.read_document(i);
    std::vector<size_t> missing;
    for (size_t k = 0; k < writers.size(); ++k) {
      if (!writers[k].contains(document.key)) missing.push_back(k);
    }
    if (missing.empty()) continue;
    const at::Tensor hidden = teacher.forward(nn::PackedBatch::from_sequences({document.tokens}));
    const at::Tensor logits =
        teacher.logits(hidden.narrow(0, document.prompt_length - 1, document.completion_length())).contiguous();
    const auto vocab = static_cast<size_t>(logits.size(1));
    const auto* const values = logits.const_data_ptr<float>();
    std::vector<data::Trace> traces(missing.size(), data::Trace{.document = document, .targets = {}});
    at::parallel_for(0, static_cast<int64_t>(missing.size()), 1, [&](int64_t begin, int64_t end) {
      for (auto m = static_cast<size_t>(begin); m < static_cast<size_t>(end); ++m) {
        const data::TraceProvenance& provenance = provenances[missing[m]];
        data::TargetSampler sampler(provenance.targets, provenance.sampling.seed, document.key);
        for (size_t row = 0; row < static_cast<size_t>(logits.size(0)); ++row) {
          sampler.add({values + row * vocab, vocab});
        }
        sampler.finish();
        traces[m].targets = std::move(sampler.targets());
      }
    });
    for (size_t m = 0; m < missing.size(); ++m) writers[missing[m]].append(traces[m]);
  }
  for (auto& writer : writers) writer.finish();
}

// A decoder of 11 million parameters with the teacher's vocabulary, in which most of them are the embeddings.
nlohmann::json student_config(nlohmann::json teacher_config) {
  for (const auto& [key, value] : {std::pair{"hidden_size", 192},
                                   {"intermediate_size", 512},
                                   {"num_hidden_layers", 4},
                                   {"num_attention_heads", 3},
                                   {"num_key_value_heads", 1},
                                   {"head_dim", 64}}) {
    teacher_config[key] = value;
  }
  return teacher_config;
}

Recipe recipe_for(const Variant& variant, uint64_t seed, int64_t tokens) {
  Recipe recipe;
  recipe.objective.hard_label_weight = variant.targets == "hard" ? 1.0 : 0.0;
  recipe.schedule.steps = variant.multiple * tokens / kBatchTokens;
  recipe.batch_tokens = recipe.micro_batch_tokens = kBatchTokens;
  recipe.validation_share = kHeldOutShare;
  recipe.validate_every = recipe.checkpoint_every = 0;
  recipe.keep_checkpoints = 1;
  recipe.seed = seed;
  return recipe;
}

class Bench {
 public:
  Bench(const fs::path& teacher, const fs::path& answers, fs::path work, int64_t tokens)
      : teacher_path_(teacher),
        files_(data::ModelFiles::open(teacher)),
        teacher_(load_model(files_, {.compute = at::kBFloat16})),
        answers_(open_traces(answers)),
        work_(std::move(work)),
        tokens_(tokens) {
    fs::create_directories(work_);
    core::write_file_atomically(work_ / "student.json", student_config(files_.config()).dump(2) + "\n");
    const c10::NoGradGuard no_grad;
    write_targets(*teacher_, *answers_, work_ / "targets");
  }

  void run(const std::vector<uint64_t>& seeds) {
    const fs::path results = work_ / fmt::format("results-{}.jsonl", tokens_);
    std::set<std::pair<std::string, uint64_t>> done;
    if (fs::exists(results)) {
      core::for_each_json_line(results,
                               [&](size_t, nlohmann::json&& line) { done.emplace(line["variant"], line["seed"]); });
    }
    for (const auto& group : variants()) {
      for (const uint64_t seed : seeds) {
        for (const Variant& variant : group) {
          if (done.contains({variant.name(), seed})) continue;
          core::log::info("seed {}: {}", seed, variant.name());
          const auto line = train_and_score(variant, seed, work_ / fmt::format("run-{}-{}", variant.name(), seed));
          std::ofstream file(results, std::ios::app);
          file << line.dump() << "\n";
          core::check(file.flush().good(), "{}: cannot write", results.string());
        }
      }
    }
  }

 private:
  nlohmann::ordered_json train_and_score(const Variant& variant, uint64_t seed, const fs::path& run) {
    const bool full = variant.targets == "full";
    const bool stored = !full && variant.targets != "hard";
    const auto traces = stored ? open_traces(work_ / "targets" / variant.targets) : answers_;
    const Recipe recipe = recipe_for(variant, seed, tokens_);
    Student student = make_student({.student = work_ / "student.json", .teacher = teacher_path_, .seed = seed}, *traces,
                                   recipe.compute);
    const TrainingSummary summary =
        train({.student = *student.model,
               .package = student.package,
               .traces = traces,
               .run = run,
               .recipe = recipe,
               .teachers = full ? std::vector<OnlineTeacher>{{.model = teacher_}} : std::vector<OnlineTeacher>{}});
    if (summary.interrupted) stop();
    fs::remove_all(run);

    data::Batcher held_out(answers_, {.max_tokens = kEvaluationTokens,
                                      .seed = recipe.seed,
                                      .validation_share = recipe.validation_share,
                                      .validation = true});
    const Objective judge({}, {{.model = teacher_}});
    const Evaluation evaluation = evaluate_targets(*student.model, held_out, judge, nullptr);
    return {{"variant", variant.name()},
            {"targets", variant.targets},
            {"multiple", variant.multiple},
            {"seed", seed},
            {"steps", summary.steps},
            {"tokens", summary.tokens},
            {"training_seconds", summary.seconds},
            {"packing_share", summary.packing_share},
            {"loader_wait_share", summary.loader_wait_share},
            {"bytes_per_token", stored ? bytes_per_token(*traces) : 0.0},
            {"held_out", evaluation.to_json()}};
  }

  fs::path teacher_path_;
  data::ModelFiles files_;
  std::shared_ptr<nn::CausalLM> teacher_;
  std::shared_ptr<const data::TraceReader> answers_;
  fs::path work_;
  int64_t tokens_;
};

}  // namespace
}  // namespace distill::bench

int main(int argc, char** argv) {
  distill::kernels::restart_with_short_spins(argv);
  if (argc < 6) {
    std::fprintf(stderr, "usage: quality_bench TEACHER ANSWERS WORK TOKENS SEED ...\n");
    return 2;
  }
  try {
    distill::core::install_interrupt_handlers();
    const char* const threads = std::getenv("OMP_NUM_THREADS");
    distill::kernels::set_num_threads(threads ? std::atoi(threads) : 0);
    std::vector<uint64_t> seeds;
    for (int i = 5; i < argc; ++i) seeds.push_back(std::stoull(argv[i]));
    distill::bench::Bench(argv[1], argv[2], argv[3], std::stoll(argv[4])).run(seeds);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quality_bench: %s\n", error.what());
    return 1;
  }
}
