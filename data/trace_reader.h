// Reads a set of traces: a directory of shards, or one shard. Documents are numbered through all shards in the order of
// the shards' names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/trace.h"

namespace distill::data {

class TraceShard;

// The shards (*.h5) of a directory in the order of their names, or the one that `path` is. Throws Error if there are
// none.
std::vector<std::filesystem::path> shard_files(const std::filesystem::path& path);

// Immutable after open() and safe to use from several threads at once; shards are memory-mapped, so an open set costs
// memory only for what is being read.
class TraceReader {
 public:
  // `path` is a directory with *.h5 shards or one shard. Throws Error naming the shard and what is wrong: no shards,
  // damaged, of another format version, or shards of different teachers, tokenizers, vocabularies, sampling parameters
  // or target modes in one directory.
  static TraceReader open(const std::filesystem::path& path);

  const TraceProvenance& provenance() const;
  // Throws Error naming both fingerprints, or both sizes, unless the traces were made with this tokenizer and fit this
  // vocabulary.
  void require(const std::string& tokenizer_fingerprint, int64_t vocab_size) const;

  size_t size() const { return offsets_.back(); }
  uint64_t prompt_tokens() const;
  uint64_t completion_tokens() const;

  // The lengths of a document, without reading it.
  struct Lengths {
    int32_t prompt = 0;
    int32_t completion = 0;
  };
  Lengths lengths(size_t index) const;
  std::string prompt_id(size_t index) const;
  TraceKey key(size_t index) const;

  // Document `index` below size(), its checksum verified. Throws Error naming shard and document if it is damaged.
  Trace read(size_t index) const;
  // Several in the order given, on up to `threads` threads.
  std::vector<Trace> read(std::span<const size_t> indices, size_t threads) const;
  // The same without decoding the targets.
  TraceDocument read_document(size_t index) const;

  const std::vector<std::shared_ptr<const TraceShard>>& shards() const { return shards_; }

 private:
  std::pair<const TraceShard&, size_t> locate(size_t index) const;

  std::vector<std::shared_ptr<const TraceShard>> shards_;
  std::vector<size_t> offsets_{0};  // [shards + 1]: documents before each shard
};

}  // namespace distill::data
