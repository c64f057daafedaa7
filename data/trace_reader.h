// Reads a set of traces: a directory of shards, or one shard. Documents are numbered through all shards in the order of
// the shards' names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/target_fidelity.h"
#include "data/trace.h"
#include "data/trace_source.h"

namespace distill::data {

class TraceShard;

// The shards (*.h5) of a directory in the order of their names, or the one that `path` is. Throws Error if there are
// none.
std::vector<std::filesystem::path> shard_files(const std::filesystem::path& path);

// Immutable after open() and safe to use from several threads at once; shards are memory-mapped, so an open set costs
// memory only for what is being read.
class TraceReader final : public TraceSource {
 public:
  // `path` is a directory with *.h5 shards or one shard. Throws Error naming the shard and what is wrong: no shards,
  // damaged, of another format version, or shards of different teachers, tokenizers, vocabularies, sampling parameters
  // or target modes in one directory.
  static TraceReader open(const std::filesystem::path& path);

  const TraceProvenance& provenance() const override;
  // Throws Error naming both fingerprints, or both sizes, unless the traces were made with this tokenizer and fit this
  // vocabulary.
  void require(const std::string& tokenizer_fingerprint, int64_t vocab_size) const;

  size_t size() const override { return offsets_.back(); }
  uint64_t prompt_tokens() const;
  uint64_t completion_tokens() const;

  Lengths lengths(size_t index) const override;
  std::string prompt_id(size_t index) const override;
  TraceKey key(size_t index) const override;

  // Checksums are verified. These throw Error naming shard and document if it is damaged.
  Trace read(size_t index) const override;
  using TraceSource::read;
  TraceDocument read_document(size_t index) const override;
  std::span<const std::byte> hidden_states(size_t index) const override;
  double divergence_excess() const override;
  // Of all shards in which it was measured; nothing if it was in none.
  std::optional<Fidelity> fidelity() const;

  const std::vector<std::shared_ptr<const TraceShard>>& shards() const { return shards_; }

 private:
  std::pair<const TraceShard&, size_t> locate(size_t index) const;

  std::vector<std::shared_ptr<const TraceShard>> shards_;
  std::vector<size_t> offsets_{0};  // [shards + 1]: documents before each shard
};

}  // namespace distill::data
