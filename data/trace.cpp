#include "data/trace.h"

#include <algorithm>
#include <utility>

#include "core/config.h"
#include "core/error.h"
#include "core/json_difference.h"

namespace distill::data {

std::string_view to_string(FinishReason reason) {
  return reason == FinishReason::kStop ? "stop" : "length";
}

std::string_view to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kCorrect:
      return "correct";
    case Verdict::kIncorrect:
      return "incorrect";
    case Verdict::kUnchecked:
      break;
  }
  return "unchecked";
}

nlohmann::json TraceProvenance::to_json() const {
  nlohmann::json json{
      {"teacher", teacher},
      {"fingerprints",
       {{"weights", weights}, {"config", config}, {"tokenizer", tokenizer}, {"chat_template", chat_template}}},
      {"vocab_size", vocab_size},
      {"sampling",
       {{"temperature", sampling.temperature},
        {"top_p", sampling.top_p},
        {"top_k", sampling.top_k},
        {"min_p", sampling.min_p},
        {"max_new_tokens", sampling.max_new_tokens},
        {"seed", sampling.seed}}},
      {"targets", {{"mode", targets.to_string()}, {"temperature", targets.temperature}}},
      {"command", command},
      {"version", version}};
  if (!targets.keep.empty()) json["targets"]["keep"] = targets.keep;
  if (sampling.thinking_budget) json["sampling"]["thinking_budget"] = *sampling.thinking_budget;
  if (hidden_states) json["hidden_states"] = hidden_states->to_json();
  if (reasoning) json["reasoning"] = {{"open", reasoning->open}, {"close", reasoning->close}};
  return json;
}

TraceProvenance TraceProvenance::from_json(const nlohmann::json& json, const std::string& location) {
  core::ConfigReader reader(json, location);
  TraceProvenance result;
  result.teacher = reader.require<std::string>("teacher");
  auto fingerprints = reader.section("fingerprints");
  result.weights = fingerprints.require<std::string>("weights");
  result.config = fingerprints.require<std::string>("config");
  result.tokenizer = fingerprints.require<std::string>("tokenizer");
  result.chat_template = fingerprints.require<std::string>("chat_template");
  fingerprints.finish();
  result.vocab_size = reader.require<int64_t>("vocab_size");
  if (result.vocab_size < 1 || result.vocab_size > INT32_MAX) reader.reject("vocab_size", "is out of range");
  auto sampling = reader.section("sampling");
  result.sampling.temperature = sampling.require<double>("temperature");
  result.sampling.top_p = sampling.require<double>("top_p");
  result.sampling.top_k = sampling.require<int64_t>("top_k");
  result.sampling.min_p = sampling.require<double>("min_p");
  result.sampling.max_new_tokens = sampling.require<int64_t>("max_new_tokens");
  result.sampling.seed = static_cast<uint64_t>(sampling.require<int64_t>("seed"));
  result.sampling.thinking_budget = sampling.find<int64_t>("thinking_budget");
  sampling.finish();
  auto targets = reader.section("targets");
  result.targets = TargetSpec::parse(targets.require<std::string>("mode"));
  result.targets.temperature = targets.require<double>("temperature");
  if (!(result.targets.temperature > 0)) targets.reject("temperature", "must be above 0");
  if (targets.contains("keep")) {
    const auto keep = targets.require<nlohmann::json>("keep");
    const auto is_id = [&](const nlohmann::json& id) {
      return id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(result.vocab_size);
    };
    if (!keep.is_array() || !std::ranges::all_of(keep, is_id)) targets.reject("keep", "is not a list of ids");
    result.targets.set_keep(keep.get<std::vector<int32_t>>());
  }
  targets.finish();
  if (const auto hidden = reader.find<nlohmann::json>("hidden_states")) {
    result.hidden_states = HiddenStatesSpec::from_json(*hidden, location + ": hidden_states");
  }
  if (reader.contains("reasoning")) {
    auto reasoning = reader.section("reasoning");
    const auto token = [&](const char* key) {
      const auto id = reasoning.require<int64_t>(key);
      if (id < 0 || id >= result.vocab_size) reasoning.reject(key, "lies outside the vocabulary");
      return static_cast<int32_t>(id);
    };
    result.reasoning = ReasoningTokens{.open = token("open"), .close = token("close")};
    reasoning.finish();
  }
  result.command = reader.require<std::string>("command");
  result.version = reader.require<std::string>("version");
  reader.finish();
  return result;
}

std::string TraceProvenance::difference(const TraceProvenance& other) const {
  // The path of the teacher is not its identity: its fingerprints are.
  nlohmann::json mine = to_json(), theirs = other.to_json();
  for (const char* key : {"teacher", "command", "version"}) {
    mine.erase(key);
    theirs.erase(key);
  }
  return core::first_difference(mine, theirs);
}

uint64_t TraceProvenance::hidden_bytes(int32_t completion_length) const {
  return hidden_states ? static_cast<uint64_t>(completion_length) * hidden_states->position_bytes() : 0;
}

int32_t TraceProvenance::reasoning_length(const TraceDocument& document) const {
  if (!reasoning) return 0;
  return static_cast<int32_t>(data::reasoning_length(document.prompt(), document.completion(), *reasoning));
}

}  // namespace distill::data
