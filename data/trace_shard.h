// One sealed shard of traces, opened read-only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/mapped_file.h"
#include "data/target_codec.h"
#include "data/trace.h"
#include "data/trace_format.h"
#include "data/trace_record.h"

namespace distill::data {

// Memory-mapped, immutable and safe to use from several threads at once. The HDF5 library is not involved: the user
// block says where the datasets lie, so there is no lock to wait for and no parser to trust. Everything is verified
// before it is used: opening checks sizes, offsets and the checksum of all that belongs to no single document;
// reading a document checks that document's.
class TraceShard {
 public:
  // Throws Error naming the file and what is wrong: not a trace shard, another version, truncated, damaged (with the
  // document, where it is one's row).
  static std::shared_ptr<const TraceShard> open(const std::filesystem::path& path);

  // To save what is left of a damaged shard: nothing is verified but the user block, the provenance's and the codec's
  // form, and each document when it is read; of a file cut short, the documents before the cut can be read. Only
  // size(), provenance(), trace() and hidden_states() may be called. Throws Error if not even that much is there.
  static std::shared_ptr<const TraceShard> open_damaged(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_->path(); }
  const TraceProvenance& provenance() const { return provenance_; }
  const TargetCodec& codec() const { return *codec_; }
  // As it was measured when the targets were made; nothing if it was not. Throws Error if it makes no sense.
  std::optional<Fidelity> fidelity() const;
  size_t size() const { return documents_; }

  // From the table, without reading the document. `index` is below size().
  TraceKey key(size_t index) const;
  std::string_view prompt_id(size_t index) const;
  int32_t prompt_length(size_t index) const;
  int32_t completion_length(size_t index) const;
  Verdict verdict(size_t index) const;
  FinishReason finish_reason(size_t index) const;
  uint64_t prompt_tokens() const { return prompt_tokens_; }
  uint64_t completion_tokens() const { return completion_tokens_; }

  // The document, its checksum verified. Throws Error naming shard and document if it is damaged.
  TraceDocument document(size_t index) const;
  // Without its hidden states.
  Trace trace(size_t index) const;
  // These, as stored, verified against their own checksum; empty if the shard has none. Throws likewise.
  std::span<const std::byte> hidden_states(size_t index) const;
  // Its targets as stored, likewise verified.
  std::span<const std::byte> payload(size_t index) const;

  // Bytes of one dataset, and of the whole file.
  size_t bytes(trace_format::Dataset dataset) const { return regions_[dataset].size(); }
  size_t file_bytes() const { return file_->bytes().size(); }

  // Reads the file with the HDF5 library as other programs do and compares names, types and places of all datasets with
  // what the user block says. Throws Error at the first difference.
  void verify_hdf5() const;

 private:
  explicit TraceShard(std::shared_ptr<const core::MappedFile> file) : file_(std::move(file)) {}
  void find_regions(bool may_be_cut);
  void read_settings();
  void verify_structure() const;
  void verify_table();
  std::string damaged_document() const;
  // Whether a row's offsets lie in their datasets and its checksum matches, before anything about the table is known.
  bool intact(size_t index) const;
  // The same for its hidden states, where there are any.
  bool hidden_states_intact(size_t index) const;
  // Where the documents' tokens end that are there, in their dataset or in what there is of the payloads.
  uint64_t stored_tokens() const;
  RecordPieces pieces(size_t index) const;
  RecordPieces verified_pieces(size_t index) const;
  std::string name_of(size_t index) const;
  template <typename T>
  T value(trace_format::Dataset dataset, size_t index) const;

  std::shared_ptr<const core::MappedFile> file_;
  std::array<std::span<const std::byte>, trace_format::kDatasets> regions_{};
  uint32_t version_ = 0;
  TraceProvenance provenance_;
  std::unique_ptr<const TargetCodec> codec_;
  size_t documents_ = 0;
  bool tokens_in_payload_ = false;
  size_t token_bytes_ = 0;  // of those in their dataset
  uint64_t prompt_tokens_ = 0;
  uint64_t completion_tokens_ = 0;
};

}  // namespace distill::data
