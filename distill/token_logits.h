// The logits of given token sequences, for comparing models with other programs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "nn/causal_lm.h"

namespace distill {

// Line i of a JSON Lines file is an array of token ids below `vocab_size`. Throws Error naming the line and entry.
std::vector<std::vector<int32_t>> read_token_lines(const std::filesystem::path& path, int64_t vocab_size);

enum class ScoringMode {
  kWholeSequence,  // one forward without a cache
  kIncremental,    // token by token through the cache, as generation runs
};

// Logits [T, vocab] fp32 of a sequence of T tokens.
at::Tensor sequence_logits(nn::CausalLM& model, const std::vector<int32_t>& tokens, ScoringMode mode);

// Writes a safetensors file with the logits of sequence i as tensor "i". Ends between sequences with Error if the
// process is asked to stop; the file then does not appear.
void write_token_logits(nn::CausalLM& model, const std::vector<std::vector<int32_t>>& sequences, ScoringMode mode,
                        const std::filesystem::path& out);

}  // namespace distill
