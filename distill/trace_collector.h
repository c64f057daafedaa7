// What every capture does, whoever the teacher is: finds the prompts whose answers are still missing, and writes an
// answer as a trace once it is complete.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/progress.h"
#include "data/prompts.h"
#include "data/tokenizer.h"
#include "data/trace.h"
#include "data/trace_writer.h"
#include "data/verification_queue.h"
#include "distill/capture_summary.h"
#include "nn/generation_request.h"

namespace distill {

// Not thread-safe.
class TraceCollector {
 public:
  // Prompts and provenance outlive it; `tokenizer` reads the answers. Throws Error if a verifier is unknown or cannot
  // check its prompt's answer, and what data::TraceWriter throws; UsageError if `samples` makes no sense.
  TraceCollector(std::span<const data::Prompt> prompts, const data::TraceProvenance& provenance,
                 std::shared_ptr<const data::Tokenizer> tokenizer, const std::filesystem::path& directory,
                 int64_t samples);
  // Writes what is still being verified, whatever ended the capture.
  ~TraceCollector();
  TraceCollector(const TraceCollector&) = delete;
  TraceCollector& operator=(const TraceCollector&) = delete;

  struct Missing {
    const data::Prompt* prompt = nullptr;
    std::vector<uint32_t> samples;  // that are neither in the directory nor handed out before
  };
  // The next prompt with missing answers.
  std::optional<Missing> next();

  // A prompt that next() gave and that cannot be answered is left out and reported; the first reason counts.
  void reject(const std::string& id, const std::string& reason);

  // Writes the trace of an answer to a prompt that next() gave. Where the prompt says how, what comes after reasoning
  // is verified, by programs beside the work that goes on; traces are written in the order of the answers all the same.
  void write(nn::Completion&& completion, data::SparseTargets&& targets, std::vector<std::byte>&& hidden_states = {});

  // Seals what is written, or leaves it in the journal of its shard for the next run if this one was interrupted.
  CaptureSummary finish(bool interrupted);

 private:
  using Clock = std::chrono::steady_clock;
  void store(data::Trace& trace, data::Verdict verdict, int32_t reasoning);
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  std::span<const data::Prompt> prompts_;
  const data::TraceProvenance& provenance_;
  std::shared_ptr<const data::Tokenizer> tokenizer_;
  std::filesystem::path directory_;
  uint32_t samples_;
  data::TraceWriter writer_;
  size_t next_prompt_ = 0;
  // Prompts with unfinished or rejected answers, by id.
  struct Asked {
    const data::Prompt* prompt = nullptr;
    size_t unfinished = 0;
  };
  std::unordered_map<std::string, Asked> asked_;
  CaptureSummary summary_;
  std::optional<core::Progress> progress_;
  Clock::time_point start_ = Clock::now();
  data::VerificationQueue verification_;  // ends before what it hands on to
};

// How completions are drawn, as the engine and remote servers are asked to. Throws UsageError if reasoning has a budget
// and the tokenizer no tokens for it.
nn::GenerateOptions generate_options(const data::TraceProvenance& provenance, const std::vector<int32_t>& stop_tokens);

}  // namespace distill
