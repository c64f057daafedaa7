#include "distill/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <thread>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/interrupt.h"
#include "core/text_file.h"
#include "data/safetensors.h"
#include "distill/checkpoint.h"
#include "tests/data/expect_error.h"
#include "tests/distill/tiny_traces.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

constexpr const char* kChildRun = "DISTILL_TEST_RUN";
constexpr const char* kChildData = "DISTILL_TEST_DATA_FOLDER";
constexpr const char* kChildSteps = "DISTILL_TEST_STEPS";

const ModelPackage& tiny_package() {
  static const ModelPackage package{.config = {{"model_type", "tiny"}, {"vocab_size", kTinyVocab}}, .files = {}};
  return package;
}

Recipe tiny_recipe(int64_t steps) {
  Recipe recipe;
  recipe.schedule = {.peak = 0.02, .warmup_steps = 5, .steps = steps};
  recipe.optimizer.weight_decay = 0.0;
  recipe.batch_tokens = 256;
  recipe.micro_batch_tokens = 128;
  recipe.validation_share = 0.2;
  recipe.validate_every = 0;
  recipe.checkpoint_every = 0;
  recipe.compute = at::kFloat;
  return recipe;
}

class TrainerTest : public testing::Test {
 protected:
  // The models are too small to be worth a second thread.
  void SetUp() override { at::set_num_threads(1); }

  std::shared_ptr<const data::TraceReader> traces(const std::string& targets = "full", int documents = 60) {
    TinyModel teacher(kTinyVocab, 16, 100);
    return make_tiny_traces(data_folder(), teacher, targets, documents);
  }
  fs::path data_folder() const { return folder_.path() / "traces"; }
  fs::path run_folder() const { return folder_.path() / "run"; }

  TrainingSummary train_student(TinyModel& student, std::shared_ptr<const data::TraceReader> from,
                                const Recipe& recipe) {
    return train({.student = student,
                  .package = tiny_package(),
                  .traces = std::move(from),
                  .run = run_folder(),
                  .recipe = recipe});
  }

  TemporaryFolder folder_{TemporaryFolder::memory()};
};

std::vector<nlohmann::json> metrics_of(const fs::path& run, const std::string& kind) {
  std::vector<nlohmann::json> lines;
  core::for_each_json_line(run / "metrics.jsonl", [&](size_t, nlohmann::json&& line) {
    if (line["kind"] == kind) lines.push_back(std::move(line));
  });
  return lines;
}

TEST_F(TrainerTest, LearnsTheTeachersDistributionFromFullTargets) {
  TinyModel student(kTinyVocab, 16, 1);
  Recipe recipe = tiny_recipe(400);
  recipe.validate_every = 100;
  const TrainingSummary summary = train_student(student, traces("full", 200), recipe);
  const auto validations = metrics_of(run_folder(), "validation");
  ASSERT_EQ(validations.size(), 4u);
  EXPECT_GT(metrics_of(run_folder(), "train").front()["divergence"], 0.15);
  EXPECT_LT(summary.validation->divergence(), 0.02);
  EXPECT_GT(summary.validation->agreement(), 0.85);
  EXPECT_DOUBLE_EQ(validations.back()["divergence"].get<double>(), summary.validation->divergence());
}

TEST_F(TrainerTest, LearnsTheTeachersDistributionFromTopKWithAGhostTail) {
  TinyModel student(kTinyVocab, 16, 1);
  const TrainingSummary summary = train_student(student, traces("topk:8", 200), tiny_recipe(300));
  EXPECT_LT(summary.validation->divergence(), 0.03);
}

TEST_F(TrainerTest, HardLabelsLeaveTheTeachersDistributionFurtherAway) {
  const auto data = traces("full", 100);
  Recipe recipe = tiny_recipe(200);
  TinyModel soft(kTinyVocab, 16, 1);
  const double soft_divergence = train_student(soft, data, recipe).validation->divergence();
  recipe.objective.hard_label_weight = 1;
  TinyModel hard(kTinyVocab, 16, 1);
  const auto summary = train(
      {.student = hard, .package = tiny_package(), .traces = data, .run = folder_.path() / "hard", .recipe = recipe});
  EXPECT_GT(summary.validation->divergence(), 2 * soft_divergence);
}

TEST_F(TrainerTest, AccumulatedGradientsEqualThoseOfOneBatch) {
  const auto data = traces();
  TinyModel whole(kTinyVocab, 16, 1);
  const BatchLoss one = [&] {
    data::Batcher batcher(data, {.max_tokens = 512});
    const auto batch = batcher.next();
    return Objective({}, data->provenance().targets)(whole, batch, 1.0 / batch.target_rows.numel());
  }();
  one.loss.backward();

  // The same documents, one by one.
  TinyModel parts(kTinyVocab, 16, 1);
  data::Batcher batcher(data, {.max_tokens = 512});
  const auto batch = batcher.next();
  const auto total = static_cast<double>(batch.target_rows.numel());
  const Objective objective({}, data->provenance().targets);
  data::Batcher small(data, {.max_tokens = 14});
  int64_t seen = 0;
  while (const auto piece = small.next_in_epoch()) {
    if (std::ranges::find(batch.documents, piece->documents.at(0)) == batch.documents.end()) continue;
    objective(parts, *piece, 1 / total).loss.backward();
    seen += piece->target_rows.numel();
  }
  ASSERT_EQ(seen, batch.target_rows.numel());
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(at::allclose(whole.parameters()[i].second.grad(), parts.parameters()[i].second.grad(), 1e-5, 1e-7));
  }
}

TEST_F(TrainerTest, GivesTheSameWeightsTwice) {
  const auto data = traces();
  TinyModel first(kTinyVocab, 16, 1);
  TinyModel second(kTinyVocab, 16, 1);
  train_student(first, data, tiny_recipe(20));
  fs::remove_all(run_folder());
  train_student(second, data, tiny_recipe(20));
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(first.parameters()[i].second.equal(second.parameters()[i].second));
}

TEST_F(TrainerTest, KeepsTheLastCheckpointsOnly) {
  TinyModel student(kTinyVocab, 16, 1);
  Recipe recipe = tiny_recipe(10);
  recipe.checkpoint_every = 2;
  recipe.keep_checkpoints = 2;
  const auto summary = train_student(student, traces(), recipe);
  EXPECT_EQ(core::read_file(run_folder() / "latest"), "checkpoint-00000010\n");
  EXPECT_EQ(summary.checkpoint, run_folder() / "checkpoint-00000010");
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(run_folder())) {
    if (entry.path().filename().string().starts_with("checkpoint")) found.push_back(entry.path().filename());
  }
  EXPECT_THAT(found, testing::UnorderedElementsAre("checkpoint-00000008", "checkpoint-00000010"));
}

TEST_F(TrainerTest, DoesNothingMoreWhenRunAgainAfterItsEnd) {
  const auto data = traces();
  TinyModel student(kTinyVocab, 16, 1);
  train_student(student, data, tiny_recipe(5));
  TinyModel again(kTinyVocab, 16, 2);
  const auto summary = train_student(again, data, tiny_recipe(5));
  EXPECT_EQ(summary.resumed_from, 5);
  EXPECT_TRUE(again.parameters()[0].second.equal(student.parameters()[0].second));
}

TEST_F(TrainerTest, RefusesToContinueARunOfAnotherKind) {
  const auto data = traces();
  TinyModel student(kTinyVocab, 16, 1);
  train_student(student, data, tiny_recipe(3));

  Recipe other = tiny_recipe(6);
  other.schedule.peak = 0.5;
  EXPECT_THAT(error_of([&] { train_student(student, data, other); }),
              AllOf(HasSubstr("optimizer learning_rate: 0.02 against 0.5"), HasSubstr("choose another --out")));

  TinyModel larger(kTinyVocab, 24, 1);
  EXPECT_THAT(error_of([&] { train_student(larger, data, tiny_recipe(6)); }),
              AllOf(HasSubstr("model.embed_tokens.weight"), HasSubstr("the student's is Float [40, 24]")));

  ModelPackage package = tiny_package();
  package.config["hidden_act"] = "gelu";
  EXPECT_THAT(
      error_of([&] {
        train({.student = student, .package = package, .traces = data, .run = run_folder(), .recipe = tiny_recipe(6)});
      }),
      AllOf(HasSubstr("is of another model"), HasSubstr("hidden_act is missing there and \"gelu\"")));

  TinyModel teacher(kTinyVocab, 16, 100);
  const auto others = make_tiny_traces(folder_.path() / "other", teacher, "topk:4", 30);
  EXPECT_THAT(error_of([&] { train_student(student, others, tiny_recipe(6)); }), HasSubstr("targets mode"));
}

TEST_F(TrainerTest, StopsWithAClearMessageWhenTheLossIsNotANumber) {
  const auto data = traces();
  Recipe recipe = tiny_recipe(3);
  recipe.guard.patience = 3;
  TinyModel student(kTinyVocab, 16, 1);
  {
    const c10::NoGradGuard no_grad;
    student.parameters()[1].second[0][0] = NAN;
  }
  EXPECT_THAT(error_of([&] { train_student(student, data, recipe); }),
              AllOf(HasSubstr("step 3: the loss is nan"), HasSubstr("there is no checkpoint yet")));
  EXPECT_FALSE(fs::exists(run_folder() / "latest"));
}

// A weight is not a number from this forward pass on.
void break_weights(TinyModel& student, int from_call) {
  student.before_forward = [&student, from_call, calls = 0]() mutable {
    const c10::NoGradGuard no_grad;
    if (++calls == from_call) student.parameters()[1].second[0][0] = NAN;
  };
}

TEST_F(TrainerTest, EndsInAnErrorWhenItsLastStepsDiverged) {
  const auto data = traces();
  Recipe recipe = tiny_recipe(5);
  recipe.validation_share = 0;
  TinyModel broken(kTinyVocab, 16, 1);
  break_weights(broken, 1);
  EXPECT_THAT(error_of([&] { train_student(broken, data, recipe); }),
              AllOf(HasSubstr("step 5: the loss is nan"), HasSubstr("there is no checkpoint yet")));
  EXPECT_FALSE(fs::exists(run_folder() / "latest"));
  EXPECT_FALSE(fs::exists(run_folder() / "report.html"));

  recipe.checkpoint_every = 2;
  TinyModel student(kTinyVocab, 16, 1);
  break_weights(student, 8);  // two passes a step
  EXPECT_THAT(error_of([&] { train_student(student, data, recipe); }),
              AllOf(HasSubstr("step 5: the loss is nan"), HasSubstr("the checkpoint of step 2 is kept")));
  EXPECT_EQ(core::read_file(run_folder() / "latest"), "checkpoint-00000002\n");
  EXPECT_FALSE(fs::exists(run_folder() / "report.html"));
}

TEST_F(TrainerTest, KeepsTheLastGoodCheckpointWhenItIsInterruptedWhileStepsFail) {
  const auto data = traces();
  Recipe recipe = tiny_recipe(100);
  recipe.validation_share = 0;
  recipe.checkpoint_every = 2;
  TinyModel student(kTinyVocab, 16, 1);
  core::install_interrupt_handlers();
  student.before_forward = [&, calls = 0]() mutable {
    const c10::NoGradGuard no_grad;
    if (++calls == 6) student.parameters()[1].second[0][0] = NAN;
    if (calls == 10) ::raise(SIGTERM);
  };
  const auto summary = train_student(student, data, recipe);
  core::clear_interrupt();
  EXPECT_TRUE(summary.interrupted);
  EXPECT_EQ(summary.steps, 5);
  EXPECT_EQ(summary.checkpoint, run_folder() / "checkpoint-00000002");
  EXPECT_EQ(core::read_file(run_folder() / "latest"), "checkpoint-00000002\n");

  TinyModel again(kTinyVocab, 16, 1);
  recipe.schedule.steps = 4;
  EXPECT_EQ(train_student(again, data, recipe).resumed_from, 2);
}

TEST_F(TrainerTest, StopsWhenTheLearningRateMakesItDiverge) {
  const auto data = traces();
  TinyModel student(kTinyVocab, 16, 1);
  Recipe recipe = tiny_recipe(50);
  recipe.schedule = {.shape = ScheduleShape::kConstant, .peak = 1e38, .warmup_steps = 0, .steps = 50};
  recipe.checkpoint_every = 1;
  EXPECT_THAT(error_of([&] { train_student(student, data, recipe); }),
              HasSubstr("the run has diverged; the checkpoint"));
}

TEST_F(TrainerTest, TrainsWithoutValidationWhereTooFewDocumentsLeaveNothingToHoldOut) {
  const auto data = traces("full", 1);
  TinyModel student(kTinyVocab, 16, 1);
  Recipe recipe = tiny_recipe(3);
  recipe.validation_share = 0.01;  // the only prompt's hash lies above it
  const auto summary = train_student(student, data, recipe);
  EXPECT_EQ(summary.steps, 3);
  EXPECT_FALSE(summary.validation);
}

TEST_F(TrainerTest, RefusesARunThatAnotherProcessIsWriting) {
  const CheckpointStore store(run_folder(), 1);
  EXPECT_THAT(error_of([&] { CheckpointStore(run_folder(), 1); }), HasSubstr("another process is training in"));
}

TEST_F(TrainerTest, LeavesThePreviousCheckpointIntactOnAFullDisk) {
  TinyModel student(kTinyVocab, 16, 1);
  Optimizer optimizer(student.parameters(), {});
  CheckpointStore store(run_folder(), 2);
  TrainerState state;
  state.step = 1;
  state.recipe = tiny_recipe(5).to_json();
  state.provenance = data::sample_provenance().to_json();
  store.save(state, tiny_package(), student.parameters(), {}, optimizer.state());
  const std::string before = core::read_file(run_folder() / "checkpoint-00000001" / "model.safetensors");

  ::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ::getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit small{.rlim_cur = 1500, .rlim_max = limit.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  state.step = 2;
  const std::string error =
      error_of([&] { store.save(state, tiny_package(), student.parameters(), {}, optimizer.state()); });
  ::setrlimit(RLIMIT_FSIZE, &limit);

  EXPECT_THAT(error,
              AllOf(HasSubstr("checkpoint-00000002"), HasSubstr("model.safetensors"), HasSubstr("File too large")));
  EXPECT_EQ(*store.latest(), run_folder() / "checkpoint-00000001");
  EXPECT_EQ(core::read_file(run_folder() / "checkpoint-00000001" / "model.safetensors"), before);
  EXPECT_FALSE(fs::exists(run_folder() / "checkpoint-00000002"));
  Optimizer fresh(student.parameters(), {});
  EXPECT_EQ(load_checkpoint(*store.latest(), tiny_package(), student.parameters(), {}, fresh).state.step, 1);
}

TEST_F(TrainerTest, NamesWhatIsDamagedInACheckpoint) {
  const auto data = traces();
  TinyModel student(kTinyVocab, 16, 1);
  train_student(student, data, tiny_recipe(3));
  const fs::path checkpoint = run_folder() / "checkpoint-00000003";
  fs::resize_file(checkpoint / "optimizer.safetensors", 100);
  EXPECT_THAT(error_of([&] { train_student(student, data, tiny_recipe(6)); }), HasSubstr("optimizer.safetensors"));
}

TEST_F(TrainerTest, SkipsAStepWhoseGradientIsFarTooLong) {
  const auto data = traces();
  TinyModel student(kTinyVocab, 16, 1);
  student.before_forward = [&, calls = 0]() mutable {
    const c10::NoGradGuard no_grad;
    at::Tensor scale = student.parameters()[2].second;
    if (++calls == 81) scale.mul_(1024);  // for one batch
    if (calls == 82) scale.div_(1024);
  };
  const auto summary = train_student(student, data, tiny_recipe(60));
  int64_t skipped = 0;
  for (const auto& line : metrics_of(run_folder(), "train")) skipped += line.contains("skipped") ? 1 : 0;
  EXPECT_EQ(skipped, 1);
  EXPECT_EQ(summary.skipped, 1);
  EXPECT_EQ(summary.steps, 60);
  EXPECT_LT(student.parameters()[2].second.max().item<double>(), 10);
}

TEST_F(TrainerTest, GoesBackToTheLastCheckpointWhenStepsKeepFailing) {
  const auto data = traces();
  TinyModel student(kTinyVocab, 16, 1);
  Recipe recipe = tiny_recipe(6);
  recipe.checkpoint_every = 3;
  recipe.validation_share = 0;
  recipe.guard.patience = 3;
  int calls = 0;
  student.before_forward = [&] {  // broken weights for a while
    const c10::NoGradGuard no_grad;
    if (++calls == 9) student.parameters()[1].second[0][0] = NAN;
  };
  const auto summary = train_student(student, data, recipe);
  EXPECT_EQ(summary.steps, 6);
  EXPECT_EQ(summary.rollbacks, 1);
  EXPECT_TRUE(at::isfinite(student.parameters()[1].second).all().item<bool>());
  EXPECT_EQ(metrics_of(run_folder(), "train").size(), 6u);  // each step once
}

TEST_F(TrainerTest, LeavesAReportThatNeedsNothingElse) {
  TinyModel student(kTinyVocab, 16, 1);
  Recipe recipe = tiny_recipe(8);
  recipe.validate_every = 4;
  const auto summary = train_student(student, traces(), recipe);
  EXPECT_EQ(summary.report, run_folder() / "report.html");
  const std::string html = core::read_file(summary.report);
  for (const char* part : {"<svg", "KL from the teacher", "Learning rate", "Calibration on held-out tokens",
                           "micro_tokens", "fingerprints", "held-out perplexity"}) {
    EXPECT_THAT(html, HasSubstr(part));
  }
  EXPECT_THAT(html, testing::Not(HasSubstr("<script")));
  EXPECT_GT(summary.packing_share, 0.5);
}

TEST_F(TrainerTest, EndsEarlyWhenValidationNoLongerImproves) {
  const auto data = traces();
  TinyModel student(kTinyVocab, 16, 1);
  Recipe recipe = tiny_recipe(400);
  recipe.schedule = {.shape = ScheduleShape::kConstant, .peak = 0.1, .warmup_steps = 0, .steps = 400};
  recipe.objective.hard_label_weight = 1;  // overfits soon
  recipe.validate_every = 5;
  recipe.patience = 3;
  const auto summary = train_student(student, data, recipe);
  EXPECT_TRUE(summary.stopped_early);
  EXPECT_FALSE(summary.interrupted);
  EXPECT_LT(summary.steps, 400);
  // Run again, it stays ended.
  TinyModel again(kTinyVocab, 16, 1);
  const auto second = train_student(again, data, recipe);
  EXPECT_EQ(second.steps, summary.steps);
  EXPECT_TRUE(second.stopped_early);
}

TEST_F(TrainerTest, ValidatesAndKeepsTheAverageOfTheWeights) {
  const auto data = traces();
  TinyModel student(kTinyVocab, 16, 1);
  Recipe recipe = tiny_recipe(30);
  recipe.optimizer.average = 0.9;
  const auto summary = train_student(student, data, recipe);
  const auto kept = data::open_safetensors(summary.checkpoint);
  EXPECT_FALSE(kept->load("model.mixing.weight").equal(student.parameters()[1].second));
  TinyModel average(kTinyVocab, 16, 1);
  {
    const c10::NoGradGuard no_grad;
    for (auto& [name, tensor] : average.parameters()) tensor.copy_(kept->load(name));
  }
  data::Batcher held_out(data, {.max_tokens = 128, .validation_share = 0.2, .validation = true});
  const auto evaluation = evaluate_targets(average, held_out, Objective({}, data->provenance().targets), nullptr);
  EXPECT_EQ(evaluation.loss(), summary.validation->loss());
}

TEST_F(TrainerTest, TrainsOnATeacherThatIsHere) {
  const auto data = traces("topk:1", 200);
  auto teacher = std::make_shared<TinyModel>(kTinyVocab, 16, 100);
  TinyModel student(kTinyVocab, 16, 1);
  Recipe recipe = tiny_recipe(200);
  recipe.objective.divergence = kernels::Divergence::kJensenShannon;
  const auto summary = train({.student = student,
                              .package = tiny_package(),
                              .traces = data,
                              .run = run_folder(),
                              .recipe = recipe,
                              .teachers = {{.model = teacher}}});
  EXPECT_LT(summary.validation->divergence(), 0.03);
}

TEST_F(TrainerTest, GoesOnWithTheSameTeachersAlone) {
  const auto data = traces("full", 20);
  const auto teacher = [](const std::string& path, char digest, double weight) {
    return OnlineTeacher{.model = std::make_shared<TinyModel>(kTinyVocab, 16, 100),
                         .weight = weight,
                         .path = path,
                         .weights_fingerprint = std::string(64, digest),
                         .config_fingerprint = std::string(64, '9')};
  };
  const auto train_with = [&](std::vector<OnlineTeacher> teachers, int64_t steps) {
    TinyModel student(kTinyVocab, 16, 1);
    return train({.student = student,
                  .package = tiny_package(),
                  .traces = data,
                  .run = run_folder(),
                  .recipe = tiny_recipe(steps),
                  .teachers = std::move(teachers)});
  };
  const auto summary = train_with({teacher("big", 'a', 0.75), teacher("small", 'b', 0.25)}, 2);
  EXPECT_THAT(core::read_file(summary.report),
              AllOf(HasSubstr("Teachers that scored the tokens"), HasSubstr("small"), HasSubstr(std::string(64, 'b'))));
  EXPECT_THAT(error_of([&] { train_with({}, 4); }),
              AllOf(HasSubstr("number of --online teachers: 2 against 0"), HasSubstr("choose another --out")));
  EXPECT_THAT(error_of([&] {
                train_with({teacher("big", 'a', 0.75), teacher("other", 'c', 0.25)}, 4);
              }),
              AllOf(HasSubstr("--online teacher 2 (\"small\" against \"other\")"),
                    HasSubstr("fingerprints weights: \"bbb"), HasSubstr("against \"ccc")));
  EXPECT_THAT(error_of([&] {
                train_with({teacher("big", 'a', 0.5), teacher("small", 'b', 0.5)}, 4);
              }),
              HasSubstr("--online teacher 1 (\"big\" against \"big\"), weight: 0.75 against 0.5"));
  EXPECT_EQ(train_with({teacher("moved", 'a', 0.75), teacher("small", 'b', 0.25)}, 4).resumed_from, 2);
}

TEST_F(TrainerTest, TakesACheckpointThatNamesNoTeachersForOneWithoutAny) {
  const auto data = traces("full", 20);
  TinyModel student(kTinyVocab, 16, 1);
  const fs::path state = train_student(student, data, tiny_recipe(2)).checkpoint / "trainer.json";
  nlohmann::json older = core::read_json_file(state);
  ASSERT_EQ(older.erase("teachers"), 1);
  core::write_file_atomically(state, older.dump());
  const auto error = error_of([&] {
    train({.student = student,
           .package = tiny_package(),
           .traces = data,
           .run = run_folder(),
           .recipe = tiny_recipe(4),
           .teachers = {{.model = std::make_shared<TinyModel>(kTinyVocab, 16, 100)}}});
  });
  EXPECT_THAT(error, HasSubstr("number of --online teachers: 0 against 1"));
  EXPECT_EQ(train_student(student, data, tiny_recipe(4)).resumed_from, 2);
  older["teachers"] = {1};
  core::write_file_atomically(state, older.dump());
  fs::remove_all(run_folder() / "checkpoint-00000004");
  core::write_file_atomically(run_folder() / "latest", "checkpoint-00000002\n");
  EXPECT_THAT(error_of([&] { train_student(student, data, tiny_recipe(4)); }),
              HasSubstr("trainer.json: teachers: expected a list of teachers"));
}

// The run of the tests below, in a process of its own.
TEST(TrainerProcess, DISABLED_Child) {
  at::set_num_threads(1);
  core::install_interrupt_handlers();
  TinyModel student(kTinyVocab, 16, 1);
  const char* const steps = std::getenv(kChildSteps);
  ASSERT_NE(steps, nullptr);
  Recipe recipe = tiny_recipe(std::atoll(steps));
  recipe.checkpoint_every = 3;
  recipe.validate_every = 7;
  const auto summary =
      train({.student = student,
             .package = tiny_package(),
             .traces = std::make_shared<const data::TraceReader>(data::TraceReader::open(std::getenv(kChildData))),
             .run = std::getenv(kChildRun),
             .recipe = recipe});
  EXPECT_EQ(summary.interrupted, summary.steps < recipe.schedule.steps);
}

pid_t start_child(const fs::path& data, const fs::path& run, int64_t steps) {
  ::setenv(kChildData, data.c_str(), 1);
  ::setenv(kChildRun, run.c_str(), 1);
  ::setenv(kChildSteps, std::to_string(steps).c_str(), 1);
  const char* arguments[] = {"distill_test", "--gtest_filter=TrainerProcess.DISABLED_Child",
                             "--gtest_also_run_disabled_tests", "--gtest_brief=1", nullptr};
  pid_t pid = 0;
  EXPECT_EQ(::posix_spawn(&pid, "/proc/self/exe", nullptr, nullptr, const_cast<char**>(arguments), environ), 0);
  return pid;
}

// Exit code, or minus the signal.
int wait_for(pid_t pid) {
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

std::string weights_of(const fs::path& run) {
  return core::read_file(data::ModelFiles::open(run).path() / "model.safetensors");
}

TEST_F(TrainerTest, EndsWithTheSameBitsHoweverOftenItWasKilled) {
  constexpr int64_t kSteps = 40;
  traces();
  const fs::path straight = folder_.path() / "straight";
  ASSERT_EQ(wait_for(start_child(data_folder(), straight, kSteps)), 0);
  int kills = 0;
  for (int attempt = 0; attempt < 40; ++attempt) {
    const pid_t child = start_child(data_folder(), run_folder(), kSteps);
    // Waits for another step than last time, then for a moment that may fall into anything, writing included.
    const auto lines = [&] {
      return fs::exists(run_folder() / "metrics.jsonl") ? metrics_of(run_folder(), "train").size() : 0;
    };
    bool ended = false;
    int status = 0;
    const size_t wanted = static_cast<size_t>(std::min<int64_t>(kSteps, 5 + 9 * attempt));
    while (!ended) {
      ended = ::waitpid(child, &status, WNOHANG) == child;
      try {
        if (lines() >= wanted) break;
      } catch (const core::Error&) {  // a line half written
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (!ended) {
      std::this_thread::sleep_for(std::chrono::microseconds(attempt * 700));
      ::kill(child, SIGKILL);
      if (wait_for(child) == -SIGKILL) {
        ++kills;
        continue;
      }
    } else {
      ASSERT_EQ(WEXITSTATUS(status), 0);
    }
    break;
  }
  EXPECT_GE(kills, 3);
  ASSERT_EQ(wait_for(start_child(data_folder(), run_folder(), kSteps)), 0);
  EXPECT_EQ(weights_of(run_folder()), weights_of(straight));
  // And the figures tell each step once.
  EXPECT_EQ(metrics_of(run_folder(), "train").size(), static_cast<size_t>(kSteps));
}

TEST_F(TrainerTest, WritesACheckpointOnSigtermAndContinuesFromIt) {
  traces();
  const pid_t child = start_child(data_folder(), run_folder(), 1'000'000);
  while (!fs::exists(run_folder() / "metrics.jsonl") || fs::file_size(run_folder() / "metrics.jsonl") < 2000) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ::kill(child, SIGTERM);
  EXPECT_EQ(wait_for(child), 0);
  const auto steps = metrics_of(run_folder(), "train").back()["step"].get<int64_t>();
  EXPECT_EQ(core::read_file(run_folder() / "latest"), fmt::format("checkpoint-{:08}\n", steps));

  TinyModel student(kTinyVocab, 16, 2);
  Recipe recipe = tiny_recipe(steps + 5);
  const auto data = std::make_shared<const data::TraceReader>(data::TraceReader::open(data_folder()));
  const auto summary = train_student(student, data, recipe);
  EXPECT_EQ(summary.resumed_from, steps);
  EXPECT_EQ(summary.steps, steps + 5);
}

}  // namespace
}  // namespace distill
