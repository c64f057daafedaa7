// One completion of one prompt with its evidence, and where a set of traces comes from.
#pragma once

#include <compare>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/hidden_states.h"
#include "data/reasoning.h"
#include "data/target_distribution.h"
#include "data/target_spec.h"

namespace distill::data {

// The numbers are those of the file format.
enum class FinishReason : uint8_t {
  kStop = 0,    // an end token, which is the completion's last token, or a stop string
  kLength = 1,  // the limit on new tokens or on the context
};
enum class Verdict : uint8_t {
  kUnchecked = 0,  // the prompt names no verifier
  kCorrect = 1,
  kIncorrect = 2,
};
std::string_view to_string(FinishReason reason);
std::string_view to_string(Verdict verdict);

// What identifies a trace in a set, and the order of traces in a shard.
struct TraceKey {
  std::string prompt_id;
  uint32_t sample = 0;
  auto operator<=>(const TraceKey&) const = default;
};

struct TraceDocument {
  TraceKey key;
  std::vector<int32_t> tokens;  // the prompt, then the completion
  int32_t prompt_length = 0;    // at least 1
  FinishReason finish_reason = FinishReason::kStop;
  Verdict verdict = Verdict::kUnchecked;
  double log_probability = 0;  // sum over the completion's tokens, under the distribution that they were drawn from
  uint64_t seed = 0;

  int32_t completion_length() const { return static_cast<int32_t>(tokens.size()) - prompt_length; }
  std::span<const int32_t> prompt() const { return std::span(tokens).first(prompt_length); }
  std::span<const int32_t> completion() const { return std::span(tokens).subspan(prompt_length); }
};

// Target j is the teacher's distribution of completion token j given everything before it.
struct Trace {
  TraceDocument document;
  SparseTargets targets;
  // What the model made of the tokens before completion token j, from which target j comes: encoded, position after
  // position, as the provenance's `hidden_states` says. Empty if that says nothing, and after reading: they are large
  // and asked for on their own.
  std::vector<std::byte> hidden_states{};
};

// How completions were drawn.
struct TraceSampling {
  double temperature = 1.0;  // 0 is greedy
  double top_p = 1.0;
  int64_t top_k = 0;  // 0 is no limit
  double min_p = 0.0;
  int64_t max_new_tokens = 256;
  uint64_t seed = 0;
  std::optional<int64_t> thinking_budget{};  // tokens of reasoning after which "</think>" was set
  bool operator==(const TraceSampling&) const = default;
};

// Where traces come from. Shards whose provenance differs in anything but `command` and `version` don't mix.
struct TraceProvenance {
  std::string teacher;        // the path it was loaded from
  std::string weights;        // SHA-256 fingerprints in hex, of the teacher's weights,
  std::string config;         //   its config,
  std::string tokenizer;      //   the tokenizer,
  std::string chat_template;  //   and the chat template; empty if the prompts were plain text
  int64_t vocab_size = 0;     // of the teacher's logits: every id is below it
  TraceSampling sampling;
  TargetSpec targets;
  std::optional<HiddenStatesSpec> hidden_states{};  // where they are stored
  std::optional<ReasoningTokens> reasoning{};       // where the tokenizer has such tokens
  std::string command;
  std::string version;

  nlohmann::json to_json() const;
  // Throws UsageError naming the key that is missing, unknown or of the wrong type.
  static TraceProvenance from_json(const nlohmann::json& json, const std::string& location);
  // "tokenizer: 3f2a… against 99b1…" for the first difference that matters, or empty.
  std::string difference(const TraceProvenance& other) const;

  // Bytes of the hidden states that a document of a completion so long has; 0 if none are stored.
  uint64_t hidden_bytes(int32_t completion_length) const;

  // How many tokens of the document's completion, from the first, are reasoning rather than answer.
  int32_t reasoning_length(const TraceDocument& document) const;
};

}  // namespace distill::data
