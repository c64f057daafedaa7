// The append-only file that holds finished documents until their shard is sealed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "core/file_descriptor.h"
#include "core/mapped_file.h"
#include "data/target_codec.h"
#include "data/trace.h"

namespace distill::data {

// Frames with their own checksums (data/trace_format.h). Every record that append() has returned for is found again if
// the process is killed, and every one that sync() has returned for if the machine loses power: a record cut short at
// the end is removed, one damaged in the middle is left out with a warning and its document counts as not finished. Not
// thread-safe; the caller keeps other writers away.
class TraceJournal {
 public:
  // Opens `path`, or creates it with `provenance`. Throws Error if it belongs to traces that don't mix with these.
  TraceJournal(std::filesystem::path path, const TraceProvenance& provenance);

  struct Entry {
    TraceKey key;
    uint64_t offset = 0;  // of the record in the file
    uint32_t bytes = 0;
  };
  // Records that are in the file, in the order they came.
  const std::vector<Entry>& entries() const { return entries_; }
  uint64_t bytes() const { return size_ + pending_.size(); }

  // Adds a record (trace_record.h). If the disk is full, append() and write() throw Error, the file still ends with the
  // last whole record, and write() tries again.
  void append(const TraceKey& key, std::span<const std::byte> record);
  void write();
  // Makes what was written durable.
  void sync();

  // The whole file for reading records; valid until the next append().
  std::shared_ptr<const core::MappedFile> map() const { return core::MappedFile::open(path_); }
  // The record of an entry, its checksum verified again.
  static std::span<const std::byte> record(const core::MappedFile& file, const Entry& entry);

  const std::filesystem::path& path() const { return path_; }

  // Removes the file; nothing else may be called afterwards.
  void remove();

 private:
  void replay(const TraceProvenance& provenance);
  void create(std::span<const std::byte> frames);

  std::filesystem::path path_;
  core::FileDescriptor fd_;
  uint64_t size_ = 0;  // of the whole records in the file
  std::vector<Entry> entries_;
  std::vector<std::byte> pending_;
  std::vector<Entry> pending_entries_;
};

// What a journal keeps of a document besides its tokens, as the payload of its record: u32 bytes of the fidelity · the
// fidelity · the hidden states, where `provenance` has any · the targets without loss. `codec` is
// TargetCodec::lossless(). Writing throws Error if the hidden states are not as many as the provenance says, reading
// unless the bytes are exactly that.
std::vector<std::byte> encode_journal_payload(const TargetCodec& codec, const TraceProvenance& provenance,
                                              const Trace& trace);
struct JournalPayload {
  SparseTargets targets;
  std::span<const std::byte> hidden_states;  // into the bytes given
};
JournalPayload decode_journal_payload(const TargetCodec& codec, const TraceProvenance& provenance,
                                      TraceDocument& document, std::span<const std::byte> payload);

}  // namespace distill::data
