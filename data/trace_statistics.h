// What a set of traces holds and costs, and whether it is intact.
#pragma once

#include <nlohmann/json.hpp>

#include "data/trace_reader.h"

namespace distill::data {

// {"documents", "shards", "tokens" (of completions), "prompt_tokens", "targets" (the mode), "codec", "ids_per_token",
// "uncovered" (mean), "finish_reasons", "verdicts", "lengths": [[power of two,
// completions at least so long], ...], "id_counts": [[ids, tokens that have so many], ...], "bytes_per_token":
// {"total", "ids", "weights", "tokens", "hidden", "overhead"}, "fidelity": Fidelity::to_json() of all shards that have
// one, or null}. Bytes are per completion token and add up to the size of all files; ids and weights are what the codec
// says of each payload, tokens are prompts and completions, hidden are hidden states, overhead is everything else.
// Reads everything but hidden states.
nlohmann::json measure_traces(const TraceReader& reader);

// Reads and decodes every document, compares the files with what the HDF5 library finds in them, and looks for keys
// that appear in two shards. Throws Error naming shard and document at the first defect.
void verify_traces(const TraceReader& reader);

}  // namespace distill::data
