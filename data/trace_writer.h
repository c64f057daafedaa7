// Writes a set of traces so that no finished one is ever lost: each goes to a journal first, full journals become
// sealed shards, and an interrupted run goes on where it was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "data/trace.h"

namespace distill::data {

struct TraceWriterOptions {
  // Shards are called <name>-00000.h5 and so on. Processes that share a directory take different names.
  std::string name = "shard";
  uint64_t journal_bytes_per_shard = uint64_t{256} << 20;  // uncompressed, as in the journal
  uint64_t documents_per_shard = UINT64_MAX;
  // A document survives the death of the process as soon as append() returns, and a power cut after so many more.
  size_t documents_per_sync = 16;
  // Entropy-coded weights are rounded (data/set_codec.h); otherwise they are kept as they are, in many times the space.
  bool entropy_coded = true;
  // Of all traces, where they come from other shards and none has its own.
  std::optional<Fidelity> fidelity{};
};

// Not thread-safe.
class TraceWriter {
 public:
  // Opens `directory`, creating it where needed. What is already there stays; an unfinished journal is continued.
  // Throws Error naming the file if traces there were made with other settings or are damaged, the directory cannot be
  // written, or another process writes shards of this name there.
  TraceWriter(const std::filesystem::path& directory, const TraceProvenance& provenance,
              const TraceWriterOptions& options = {});
  // Flushes, but seals nothing: whoever opens the directory again goes on with the journal.
  ~TraceWriter();
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  // Whether the directory holds this trace already, from an earlier run or this one.
  bool contains(const TraceKey& key) const;
  size_t documents() const;

  // Throws Error if the trace is invalid or already there. If the disk is full it throws Error naming the file; what
  // was durable stays so, and flush() tries again.
  void append(const Trace& trace);
  // Makes everything that was appended durable.
  void flush();

  // Flushes and seals the last shard. The writer takes no more traces.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace distill::data
