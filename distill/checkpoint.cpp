#include "distill/checkpoint.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fcntl.h>
#include <sys/file.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "core/atomic_file.h"
#include "core/config.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text_file.h"
#include "data/safetensors.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "checkpoint-";
constexpr std::string_view kRemoved = ".removed";
constexpr const char* kLatest = "latest";
constexpr const char* kState = "trainer.json";
constexpr const char* kOptimizer = "optimizer.safetensors";

std::string checkpoint_name(int64_t step) {
  return fmt::format("{}{:08}", kPrefix, step);
}

bool is_checkpoint_name(std::string_view name) {
  return name.starts_with(kPrefix) && name.size() > kPrefix.size() &&
         name.find_first_not_of("0123456789", kPrefix.size()) == std::string_view::npos;
}

// Folders of checkpoints being written or removed.
bool is_leftover(std::string_view name) {
  return name.starts_with(kPrefix) && (name.find(".tmp-") != std::string_view::npos || name.ends_with(kRemoved));
}

std::vector<fs::path> entries(const fs::path& folder, bool (*matches)(std::string_view)) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory() && matches(entry.path().filename().string())) found.push_back(entry.path());
  }
  std::ranges::sort(found);
  return found;
}

void check_same_config(const fs::path& checkpoint, const nlohmann::json& expected) {
  const fs::path path = checkpoint / "config.json";
  const nlohmann::json found = core::read_json_file(path);
  core::check(found.is_object(), "{}: not a JSON object", path.string());
  for (const auto& [key, value] : expected.items()) {
    const auto it = found.find(key);
    core::check(it != found.end() && *it == value,
                "{} is of another model: {} is {} there and {} in the student; choose another --out", path.string(),
                key, it != found.end() ? it->dump() : "missing", value.dump());
  }
}

// "auxiliary.projector.0" and so on, as they are stored.
data::NamedTensors as_stored(const data::NamedTensors& auxiliary) {
  data::NamedTensors stored;
  for (const auto& [name, tensor] : auxiliary) stored.emplace_back("auxiliary." + name, tensor);
  return stored;
}

void load_tensors(const data::WeightSource& source, const data::NamedTensors& tensors, std::string_view whose) {
  const c10::NoGradGuard no_grad;
  for (const auto& [name, tensor] : tensors) {
    core::check(source.find(name) != nullptr, "{}: tensor '{}' is missing", source.location(), name);
    const at::Tensor stored = source.load(name);
    core::check(stored.sizes() == tensor.sizes() && stored.scalar_type() == tensor.scalar_type(),
                "{}: tensor '{}' is {} [{}], the {}'s is {} [{}]", source.location(), name,
                c10::toString(stored.scalar_type()), fmt::join(stored.sizes(), ", "), whose,
                c10::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", "));
    tensor.detach().copy_(stored);
  }
}

}  // namespace

nlohmann::json TrainerState::to_json() const {
  nlohmann::json json{{"format", 1},
                      {"step", step},
                      {"tokens", tokens},
                      {"targets", targets},
                      {"batcher", batcher.to_json()},
                      {"recipe", recipe},
                      {"provenance", provenance},
                      {"teachers", teachers},
                      {"guard", guard},
                      {"validations_since_best", validations_since_best}};
  if (best_validation) json["best_validation"] = *best_validation;
  return json;
}

TrainerState TrainerState::from_json(const nlohmann::json& json, const std::string& location) {
  core::ConfigReader reader(json, location);
  if (const auto format = reader.require<int64_t>("format"); format != 1) {
    core::fail("{}: format {} is not known to this version", location, format);
  }
  TrainerState state;
  state.step = reader.require<int64_t>("step");
  state.tokens = static_cast<uint64_t>(reader.require<int64_t>("tokens"));
  state.targets = static_cast<uint64_t>(reader.require<int64_t>("targets"));
  for (const char* key : {"batcher", "recipe", "provenance", "guard"}) reader.section(key);
  state.validations_since_best = reader.get<int64_t>("validations_since_best", 0);
  state.best_validation = reader.find<double>("best_validation");
  // Missing in older checkpoints, which count as being of a run without such teachers.
  state.teachers = reader.get<nlohmann::json>("teachers", nlohmann::json::array());
  const bool are_objects = std::ranges::all_of(state.teachers, [](const auto& one) { return one.is_object(); });
  if (!state.teachers.is_array() || !are_objects) reader.reject("teachers", "expected a list of teachers");
  reader.finish();
  for (const char* key : {"batcher", "recipe", "provenance"}) {
    core::check(json.contains(key), "{}: {} is missing", location, key);
  }
  state.batcher = core::with_context(location, [&] { return data::BatcherState::from_json(json["batcher"]); });
  state.recipe = json["recipe"];
  state.provenance = json["provenance"];
  if (json.contains("guard")) state.guard = json["guard"];
  return state;
}

namespace {

TrainerState read_state(const fs::path& checkpoint) {
  const fs::path path = checkpoint / kState;
  return TrainerState::from_json(core::read_json_file(path), path.string());
}

}  // namespace

CheckpointStore::CheckpointStore(fs::path run, int64_t keep) : run_(std::move(run)), keep_(keep) {
  std::error_code error;
  fs::create_directories(run_, error);
  core::check(!error, "cannot create folder {}: {}", run_.string(), error.message());
  const fs::path lock = run_ / ".lock";
  lock_ = core::FileDescriptor(::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (!lock_) core::fail_errno("create", lock);
  core::check(::flock(lock_.get(), LOCK_EX | LOCK_NB) == 0, "another process is training in {}", run_.string());
  for (const auto& leftover : entries(run_, is_leftover)) fs::remove_all(leftover);
}

std::optional<fs::path> CheckpointStore::latest() const {
  if (!fs::exists(run_ / kLatest)) return std::nullopt;
  return data::ModelFiles::open(run_).path();
}

fs::path CheckpointStore::save(const TrainerState& state, const ModelPackage& package,
                               const data::NamedTensors& weights, const data::NamedTensors& auxiliary,
                               const data::NamedTensors& optimizer) {
  const std::string name = checkpoint_name(state.step);
  core::with_context(fmt::format("while writing checkpoint {}", (run_ / name).string()), [&] {
    core::AtomicDirectory directory(run_ / name);
    write_model_package(directory.path(), package, weights);
    data::NamedTensors rest = optimizer;
    std::ranges::copy(as_stored(auxiliary), std::back_inserter(rest));
    data::write_safetensors(directory.path() / kOptimizer, rest);
    core::write_file_atomically(directory.path() / kState, state.to_json().dump(2) + "\n");
    directory.commit();
    core::write_file_atomically(run_ / kLatest, name + "\n");
  });
  prune();
  return run_ / name;
}

void CheckpointStore::prune() const {
  const auto kept = latest();
  std::vector<fs::path> checkpoints = entries(run_, is_checkpoint_name);
  for (size_t i = 0; i + static_cast<size_t>(keep_) < checkpoints.size(); ++i) {
    if (checkpoints[i] == kept) continue;
    // Renamed first: a checkpoint under its name is complete, also when the removal is cut short.
    const fs::path removed = checkpoints[i].string() + std::string(kRemoved);
    std::error_code error;
    fs::rename(checkpoints[i], removed, error);
    if (!error) fs::remove_all(removed, error);
    if (error) core::log::warn("cannot remove the old checkpoint {}: {}", checkpoints[i].string(), error.message());
  }
}

LoadedCheckpoint load_checkpoint(const fs::path& checkpoint, const ModelPackage& package,
                                 const data::NamedTensors& weights, const data::NamedTensors& auxiliary,
                                 const Optimizer& optimizer) {
  check_same_config(checkpoint, package.config);
  const auto source = data::open_safetensors(checkpoint);
  core::check(source->tensors().size() == weights.size(), "{}: {} tensors, the student has {}", source->location(),
              source->tensors().size(), weights.size());
  load_tensors(*source, weights, "student");
  const auto rest = data::open_safetensors(checkpoint / kOptimizer);
  load_tensors(*rest, as_stored(auxiliary), "objective");
  data::NamedTensors moments = optimizer.read_state(*rest);
  return {.state = read_state(checkpoint), .optimizer = std::move(moments)};
}

Recipe read_checkpoint_recipe(const fs::path& checkpoint) {
  core::check(fs::exists(checkpoint / kState), "{} is no checkpoint of a training run: there is no {}",
              checkpoint.string(), kState);
  return Recipe::from_json(read_state(checkpoint).recipe, (checkpoint / kState).string());
}

}  // namespace distill
