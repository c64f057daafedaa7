// Traces as JSON Lines, for programs that don't read shards.
#pragma once

#include <filesystem>

#include "data/trace_reader.h"

namespace distill::data {

// One object per document and line, in the reader's order: {"prompt_id", "sample", "prompt_length",
// "reasoning_length", "tokens", "finish_reason", "verdict", "log_probability", "seed", "targets": [{"ids", "weights",
// "uncovered"}, ...]}. Numbers have as many digits as it takes to read back the same value. `path` "-" is standard
// output; a file appears when it is complete.
void export_traces(const TraceReader& reader, const std::filesystem::path& path);

}  // namespace distill::data
