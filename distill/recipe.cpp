#include "distill/recipe.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "core/config.h"
#include "core/error.h"
#include "core/json_difference.h"
#include "core/names.h"
#include "distill/target_support.h"

namespace distill {
namespace {

// Reads numbers and says under which key they are out of range.
class Section {
 public:
  Section(core::ConfigReader& parent, std::string_view name) : reader_(parent.section(name)) {}
  explicit Section(core::ConfigReader reader) : reader_(std::move(reader)) {}
  void finish() const { reader_.finish(); }

  void number(std::string_view key, double& value, double low, double high) {
    value = reader_.get<double>(key, value);
    if (!(value >= low && value <= high)) reader_.reject(key, fmt::format("{} is not in [{}, {}]", value, low, high));
  }
  void integer(std::string_view key, int64_t& value, int64_t low) {
    value = reader_.get<int64_t>(key, value);
    if (value < low) reader_.reject(key, fmt::format("{} is below {}", value, low));
  }
  void optional_number(std::string_view key, std::optional<double>& value, double low, double high) {
    value = reader_.find<double>(key);
    if (value && !(*value >= low && *value <= high)) {
      reader_.reject(key, fmt::format("{} is not in [{}, {}]", *value, low, high));
    }
  }
  std::optional<nlohmann::json> value(std::string_view key) { return reader_.find<nlohmann::json>(key); }
  [[noreturn]] void reject(std::string_view key, std::string_view message) const { reader_.reject(key, message); }
  void flag(std::string_view key, bool& value) { value = reader_.get<bool>(key, value); }
  std::string text(std::string_view key) { return reader_.require<std::string>(key); }
  Section section(std::string_view key) { return Section(reader_, key); }
  // Calls read(section) for each object of a list.
  template <typename Read>
  void each(std::string_view key, const Read& read) {
    const auto list = reader_.find<nlohmann::json>(key);
    if (!list) return;
    if (!list->is_array()) reader_.reject(key, "expected a list");
    for (size_t i = 0; i < list->size(); ++i) {
      Section section(core::ConfigReader((*list)[i], fmt::format("{}: {}[{}]", reader_.location(), key, i)));
      read(section);
      section.finish();
    }
  }
  template <typename Parse>
  void word(std::string_view key, const Parse& parse) {
    const auto text = reader_.find<std::string>(key);
    if (!text) return;
    try {
      parse(*text);
    } catch (const core::UsageError& error) {
      reader_.reject(key, error.what());
    }
  }

 private:
  core::ConfigReader reader_;
};

constexpr std::array<std::string_view, 2> kTailRule{"ghost", "renormalise"};
constexpr std::array<std::string_view, 3> kOtherTokenizer{"refuse", "text", "aligned"};

// {student's layer: teacher's layer}, in ascending order of the student's.
void read_layers(Section& section, std::vector<LayerPair>& layers) {
  const auto object = section.value("layers");
  if (!object) return;
  constexpr std::string_view kExpected =
      "expected layers of student and teacher, each a number or last, such as {4: 8, last: last}";
  if (!object->is_object() || object->empty()) section.reject("layers", kExpected);
  layers.clear();
  for (const auto& [key, value] : object->items()) {
    const auto student = data::parse_layer(key);
    const auto teacher = data::parse_layer(value.is_string() ? value.get<std::string>() : value.dump());
    if (!student || !teacher) section.reject("layers", kExpected);
    layers.push_back({.student = *student, .teacher = *teacher});
  }
  std::ranges::sort(layers, {}, [](const LayerPair& pair) { return static_cast<uint64_t>(pair.student); });
}

void read_objective(Section& section, ObjectiveOptions& options) {
  section.word("divergence", [&](const std::string& name) { options.divergence = parse_divergence(name); });
  section.optional_number("mix", options.mix, 0.001, 0.999);
  section.word("other_tokenizer", [&](const std::string& name) {
    options.other_tokenizer = core::parse_name<OtherTokenizer>(kOtherTokenizer, name);
  });
  const bool text_alone = options.other_tokenizer == OtherTokenizer::kText;
  if (text_alone) options.hard_label_weight = 1;
  section.number("hard_label_weight", options.hard_label_weight, text_alone ? 1 : 0, 1);
  section.optional_number("temperature", options.temperature, 0.01, 100);
  section.optional_number("teacher_temperature", options.teacher_temperature, 0.01, 100);
  section.word("tail",
               [&](const std::string& name) { options.tail = core::parse_name<kernels::TailRule>(kTailRule, name); });
  Section weights = section.section("weights");
  weights.number("reasoning", options.weights.reasoning, 0, 100);
  weights.number("answer", options.weights.answer, 0, 100);
  weights.number("incorrect", options.weights.incorrect, 0, 100);
  weights.number("unchecked", options.weights.unchecked, 0, 100);
  weights.number("entropy_power", options.weights.entropy_power, -10, 10);
  weights.finish();
  Section hidden = section.section("hidden_states");
  hidden.number("weight", options.hidden_states.weight, 0, 1e6);
  hidden.word("distance",
              [&](const std::string& name) { options.hidden_states.distance = parse_hidden_distance(name); });
  read_layers(hidden, options.hidden_states.layers);
  hidden.finish();
}

nlohmann::json layers_json(const std::vector<LayerPair>& layers) {
  nlohmann::json json;
  for (const LayerPair& pair : layers) {
    json[pair.student == kLastLayer ? "last" : std::to_string(pair.student)] =
        pair.teacher == kLastLayer ? nlohmann::json("last") : nlohmann::json(pair.teacher);
  }
  return json;
}

nlohmann::json objective_json(const ObjectiveOptions& options) {
  const auto or_null = [](const std::optional<double>& value) -> nlohmann::json {
    return value ? nlohmann::json(*value) : nlohmann::json();
  };
  return {{"divergence", to_string(options.divergence)},
          {"mix", or_null(options.mix)},
          {"hard_label_weight", options.hard_label_weight},
          {"temperature", or_null(options.temperature)},
          {"teacher_temperature", or_null(options.teacher_temperature)},
          {"tail", kTailRule[static_cast<size_t>(options.tail)]},
          {"weights",
           {{"reasoning", options.weights.reasoning},
            {"answer", options.weights.answer},
            {"incorrect", options.weights.incorrect},
            {"unchecked", options.weights.unchecked},
            {"entropy_power", options.weights.entropy_power}}},
          {"hidden_states",
           {{"weight", options.hidden_states.weight},
            {"distance", to_string(options.hidden_states.distance)},
            {"layers", layers_json(options.hidden_states.layers)}}},
          {"other_tokenizer", kOtherTokenizer[static_cast<size_t>(options.other_tokenizer)]}};
}

nlohmann::json groups_json(const std::vector<ParameterGroup>& groups) {
  auto json = nlohmann::json::array();
  for (const auto& group : groups) {
    json.push_back({{"pattern", group.pattern},
                    {"learning_rate", group.learning_rate},
                    {"weight_decay", group.weight_decay},
                    {"frozen", group.frozen}});
  }
  return json;
}

}  // namespace

at::ScalarType parse_precision(std::string_view name) {
  if (name == "fp32") return at::kFloat;
  if (name == "bf16") return at::kBFloat16;
  core::fail_usage("'{}' is neither fp32 nor bf16", name);
}

std::string_view precision_name(at::ScalarType type) {
  return type == at::kFloat ? "fp32" : "bf16";
}

Recipe Recipe::from_file(const std::filesystem::path& path) {
  std::optional<core::ConfigReader> reader;
  try {
    reader = core::ConfigReader::from_file(path);
  } catch (const core::Error& error) {
    core::fail_usage("{}", error.what());
  }
  return from_reader(*reader);
}

Recipe Recipe::from_json(const nlohmann::json& json, const std::string& location) {
  core::ConfigReader reader(json, location);
  return from_reader(reader);
}

Recipe Recipe::from_reader(core::ConfigReader& reader) {
  Recipe recipe;
  recipe.schedule.steps = reader.get<int64_t>("steps", recipe.schedule.steps);
  if (recipe.schedule.steps < 1) reader.reject("steps", "must be at least 1");
  const auto seed = reader.get<int64_t>("seed", 0);
  if (seed < 0) reader.reject("seed", "must not be negative");
  recipe.seed = static_cast<uint64_t>(seed);
  try {
    recipe.compute = parse_precision(reader.get<std::string>("precision", std::string(precision_name(recipe.compute))));
  } catch (const core::UsageError& error) {
    reader.reject("precision", error.what());
  }

  Section objective(reader, "objective");
  read_objective(objective, recipe.objective);
  objective.finish();

  Section optimizer(reader, "optimizer");
  optimizer.word("kind", [&](const std::string& name) { recipe.optimizer.kind = parse_optimizer(name); });
  optimizer.number("learning_rate", recipe.schedule.peak, 0, 10);
  optimizer.number("beta1", recipe.optimizer.beta1, 0, 0.999999);
  optimizer.number("beta2", recipe.optimizer.beta2, 0, 0.999999);
  optimizer.number("epsilon", recipe.optimizer.epsilon, 1e-20, 1);
  optimizer.number("weight_decay", recipe.optimizer.weight_decay, 0, 10);
  optimizer.number("momentum", recipe.optimizer.momentum, 0, 0.999999);
  optimizer.number("average", recipe.optimizer.average, 0, 0.999999);
  optimizer.number("clip_norm", recipe.clip_norm, 0, 1e9);
  optimizer.flag("shard", recipe.optimizer.shard);
  optimizer.each("groups", [&](Section& group) {
    ParameterGroup one;
    one.pattern = group.text("pattern");
    group.number("learning_rate", one.learning_rate, 0, 1000);
    group.number("weight_decay", one.weight_decay, 0, 1000);
    group.flag("frozen", one.frozen);
    recipe.optimizer.groups.push_back(one);
  });
  optimizer.finish();

  Section schedule(reader, "schedule");
  schedule.word("shape", [&](const std::string& name) { recipe.schedule.shape = parse_schedule(name); });
  schedule.integer("warmup_steps", recipe.schedule.warmup_steps, 0);
  schedule.number("floor", recipe.schedule.floor, 0, 1);
  schedule.number("decay_share", recipe.schedule.decay_share, 0, 1);
  schedule.finish();

  Section batch(reader, "batch");
  batch.integer("tokens", recipe.batch_tokens, 2);
  batch.integer("micro_tokens", recipe.micro_batch_tokens, 2);
  batch.flag("recompute_activations", recipe.recompute_activations);
  batch.finish();

  Section validation(reader, "validation");
  validation.number("share", recipe.validation_share, 0, 0.9);
  validation.integer("every", recipe.validate_every, 0);
  validation.integer("patience", recipe.patience, 0);
  validation.finish();

  Section guard(reader, "guard");
  guard.number("factor", recipe.guard.factor, 0, 1e9);
  guard.integer("patience", recipe.guard.patience, 1);
  guard.finish();

  Section on_policy(reader, "on_policy");
  on_policy.number("student_share", recipe.on_policy.student_share, 0, 1);
  on_policy.number("teacher_share", recipe.on_policy.teacher_share, 0, 1);
  const double student_share = recipe.on_policy.student_share, teacher_share = recipe.on_policy.teacher_share;
  if (student_share + teacher_share > 1 + 1e-9) {  // as decimal fractions, 1 may be a little more
    on_policy.reject("teacher_share",
                     fmt::format("{} and a student_share of {} add up to more than 1", teacher_share, student_share));
  }
  on_policy.number("temperature", recipe.on_policy.temperature, 0, 100);
  on_policy.integer("max_new_tokens", recipe.on_policy.max_new_tokens, 1);
  on_policy.finish();

  Section checkpoint(reader, "checkpoint");
  checkpoint.integer("every", recipe.checkpoint_every, 0);
  checkpoint.integer("keep", recipe.keep_checkpoints, 1);
  checkpoint.finish();
  reader.finish();
  return recipe;
}

nlohmann::json Recipe::to_json() const {
  return {{"steps", schedule.steps},
          {"seed", seed},
          {"precision", precision_name(compute)},
          {"objective", objective_json(objective)},
          {"optimizer",
           {{"kind", to_string(optimizer.kind)},
            {"learning_rate", schedule.peak},
            {"beta1", optimizer.beta1},
            {"beta2", optimizer.beta2},
            {"epsilon", optimizer.epsilon},
            {"weight_decay", optimizer.weight_decay},
            {"momentum", optimizer.momentum},
            {"average", optimizer.average},
            {"groups", groups_json(optimizer.groups)},
            {"shard", optimizer.shard},
            {"clip_norm", clip_norm}}},
          {"schedule",
           {{"shape", to_string(schedule.shape)},
            {"warmup_steps", schedule.warmup_steps},
            {"floor", schedule.floor},
            {"decay_share", schedule.decay_share}}},
          {"batch",
           {{"tokens", batch_tokens},
            {"micro_tokens", micro_batch_tokens},
            {"recompute_activations", recompute_activations}}},
          {"validation", {{"share", validation_share}, {"every", validate_every}, {"patience", patience}}},
          {"guard", {{"factor", guard.factor}, {"patience", guard.patience}}},
          {"on_policy",
           {{"student_share", on_policy.student_share},
            {"teacher_share", on_policy.teacher_share},
            {"temperature", on_policy.temperature},
            {"max_new_tokens", on_policy.max_new_tokens}}},
          {"checkpoint", {{"every", checkpoint_every}, {"keep", keep_checkpoints}}}};
}

std::string Recipe::difference(const Recipe& other) const {
  auto fixed = [](const Recipe& recipe) {
    nlohmann::json json = recipe.to_json();
    json.erase("steps");
    json.erase("checkpoint");
    json["validation"].erase("every");
    json["validation"].erase("patience");
    json["batch"].erase("recompute_activations");
    json["optimizer"].erase("shard");
    return json;
  };
  return core::first_difference(fixed(*this), fixed(other));
}

}  // namespace distill
