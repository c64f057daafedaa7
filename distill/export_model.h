// A model as others load it: Hugging Face's layout for transformers, vLLM and whoever converts from it.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace distill {

struct ExportOptions {
  std::filesystem::path model;  // anything ModelFiles opens
  std::filesystem::path out;
  at::ScalarType dtype = at::kBFloat16;  // of floating-point tensors
  bool overwrite = false;                // replaces a model that is there already
  uint64_t max_shard_bytes = 5'000'000'000;
};

struct ExportSummary {
  std::filesystem::path out;
  uint64_t parameters = 0;
  uint64_t bytes = 0;
};

// Writes safetensors, config.json, tokenizer, chat template, generation config and a model card, all or nothing. Throws
// UsageError if `out` is there (with `overwrite`: and is no model), Error naming the file or tensor at fault.
ExportSummary export_model(const ExportOptions& options);

// "fp32", "bf16", "fp16". Throws UsageError.
at::ScalarType parse_export_dtype(std::string_view name);

}  // namespace distill
