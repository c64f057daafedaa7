// Copies traces between sets: several into one, one into shards of another size, a selection, or what is intact of
// damaged shards.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "data/trace.h"

namespace distill::data {

struct TraceCopyOptions {
  uint64_t documents_per_shard = UINT64_MAX;
  // Whether a document is copied; null copies all.
  std::function<bool(const TraceDocument&)> wanted{};
  // Of the wanted ones with the same prompt: the first of those with the same completion only, and the shortest.
  bool unique = false;
  uint64_t per_prompt = UINT64_MAX;
};

struct TraceCopySummary {
  uint64_t copied = 0;              // documents now in the new set, those of an interrupted earlier run included
  uint64_t left_out = 0;            // that were not wanted or chosen
  std::vector<std::string> damage;  // of each document (or shard) that could not be read, when repairing
};

// Writes the documents of all `sources`, sets or single shards, into `directory`. The shards' tables are made anew;
// targets keep their values. Interrupted, it goes on when called again. Throws Error if the sources don't mix, hold the
// same document twice or are damaged, or the directory holds other traces.
TraceCopySummary copy_traces(std::span<const std::filesystem::path> sources, const std::filesystem::path& directory,
                             const TraceCopyOptions& options);

// Writes every document of `source` whose own checksum matches into `directory`, also from shards that are damaged or
// cut short, and says of what else was there why it is not. Throws Error if no shard can be read at all.
TraceCopySummary repair_traces(const std::filesystem::path& source, const std::filesystem::path& directory);

}  // namespace distill::data
