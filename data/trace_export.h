// Traces as JSON Lines or safetensors, for programs that don't read shards.
#pragma once

#include <filesystem>

#include "data/trace_reader.h"

namespace distill::data {

// One object per document and line, in the reader's order: {"prompt_id", "sample", "prompt_length",
// "reasoning_length", "tokens", "finish_reason", "verdict", "log_probability", "seed", "targets": [{"ids", "weights",
// "uncovered"}, ...]}. Numbers have as many digits as it takes to read back the same value. Hidden states are left out.
// `path` "-" is standard output; a file appears when it is complete.
void export_traces(const TraceReader& reader, const std::filesystem::path& path);

// The same in flat tensors, D documents with T tokens, P targets (one per completion token) and E entries in all:
//   tokens [T] i32, token_offsets [D + 1] i64, prompt_length [D] i32, sample [D] i64, log_probability [D] f64,
//   finish_reason [D] u8, verdict [D] u8 (numbers as in docs/trace-format.md),
//   prompt_ids [bytes] u8 in UTF-8, prompt_id_offsets [D + 1] i64,
//   target_offsets [P + 1] i64, target_ids [E] i32, target_weights [E] f32, target_uncovered [P] f32,
// and where there are hidden states, of L layers (those in the metadata's provenance) and H wide,
//   hidden_states [P, L, H] bf16, or in FP8 f8_e4m3, whose values hidden_scales [P, L, ceil(H / 128)] f32 multiply.
// Holds everything in memory.
void export_safetensors(const TraceReader& reader, const std::filesystem::path& path);

}  // namespace distill::data
