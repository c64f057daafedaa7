// Lets a teacher answer prompts and writes what it answered and what it thought of the alternatives: a set of traces.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/chat_template.h"
#include "data/prompts.h"
#include "data/tokenizer.h"
#include "data/trace.h"
#include "distill/capture_summary.h"
#include "distill/text_model.h"
#include "nn/causal_lm.h"

namespace distill {

// Whose traces they are: all of the provenance but sampling, targets, command and version. `chat_template` is null if
// no prompt is a conversation.
data::TraceProvenance describe_teacher(const TextModel& teacher, const data::ChatTemplate* chat_template);

struct CaptureTeacher {
  nn::CausalLM& model;
  std::shared_ptr<const data::Tokenizer> tokenizer;
  std::shared_ptr<const data::ChatTemplate> chat_template;  // null if no prompt is a conversation
  std::vector<int32_t> stop_tokens;                         // end an answer
};

struct CaptureOptions {
  std::filesystem::path directory;
  int64_t samples = 1;  // answers per prompt
  int64_t batch = 16;   // answers generated side by side
  // See nn::EngineOptions.
  int64_t cache_tokens = 0;
  std::optional<int64_t> draft_tokens{};
};

// Answers each prompt `samples` times with the sampling parameters, the kind of targets and the hidden states (if any,
// of this model's layers and width) that `provenance` states, and writes a trace as soon as an answer is complete.
// Traces already in the directory are left as they are and not made again, so that an interrupted run is continued by
// running it again; random numbers depend on the prompt's id, the sample and the position alone, so it ends with the
// same traces. When a signal asks the process to stop, unfinished answers are dropped, finished ones stay in the
// journal of their shard, and the summary says so. Throws Error if the directory holds traces of another teacher or
// other settings, or a verifier is unknown, before anything is generated; what is written by then stays if something
// fails later.
CaptureSummary capture_traces(const CaptureTeacher& teacher, std::span<const data::Prompt> prompts,
                              const data::TraceProvenance& provenance, const CaptureOptions& options);

}  // namespace distill
