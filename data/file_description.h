// What a file or directory of ours, or of the formats we read, holds: for `distill inspect`.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

namespace distill::data {

struct DescribeOptions {
  bool tensors = false;      // list every tensor
  bool fingerprint = false;  // read all weights for their SHA-256
};

// An object whose "kind" is
//   "model"        a Hugging Face directory, which a checkpoint is too
//   "run"          a run directory: its "checkpoints", and the newest of them as a model
//   "gguf"         a GGUF file, as a model, with its "metadata"
//   "safetensors"  a file, an index or a directory of shards without a config
//   "tokenizer"    a tokenizer.json
//   "traces"       a directory of trace shards or one shard: its "documents", tokens, "bytes" and "provenance"
// Models have "model_type", "config", "weights" (counts of tensors, parameters and bytes, by "dtypes" too),
// "cache_bytes_per_token" (bf16), "tokenizer", "chat_template" and "eos_token_ids"; what a model lacks is null. Models
// with latent attention also have "cache_bytes_per_token_without_latents", of ordinary attention of the same size, and
// "cache_bytes_per_token_fp8".
// Whatever of it could not be read is told in "problems", a list of messages that name file and place. Throws Error if
// nothing can be said: no such file, damaged, or none of these.
nlohmann::ordered_json describe_file(const std::filesystem::path& path, const DescribeOptions& options = {});

}  // namespace distill::data
