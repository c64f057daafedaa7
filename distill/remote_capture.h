// The same as capture.h with a teacher behind an OpenAI-compatible server.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/chat_template.h"
#include "data/prompts.h"
#include "data/tokenizer.h"
#include "data/trace.h"
#include "distill/capture_summary.h"
#include "teacher/remote_teacher.h"

namespace distill {

// What of a remote model lies here: that which turns text into its tokens.
struct RemoteText {
  std::shared_ptr<const data::Tokenizer> tokenizer;
  std::shared_ptr<const data::ChatTemplate> chat_template;  // null if no prompt is a conversation
  std::vector<int32_t> stop_tokens;                         // end an answer
};

// Whose traces they are: all of the provenance but sampling, targets, command and version. Servers don't show their
// weights, so that the model's name and the API stand for them.
data::TraceProvenance describe_teacher(const teacher::RemoteTeacher& teacher, teacher::RemoteApi api,
                                       const RemoteText& text);

// How many alternatives of each position a server is asked for: K of "topk:K". Throws UsageError for other targets,
// which take more than servers tell.
int32_t remote_alternatives(const data::TargetSpec& targets);

// Writes traces as capture_traces() does; draws depend on the server, though. Throws what the
// teacher and remote_alternatives() throw; what is written by then stays.
CaptureSummary capture_remote_traces(teacher::RemoteTeacher& teacher, teacher::RemoteApi api, const RemoteText& text,
                                     std::span<const data::Prompt> prompts, const data::TraceProvenance& provenance,
                                     const std::filesystem::path& directory, int64_t samples);

}  // namespace distill
