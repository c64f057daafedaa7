#include "data/trace_journal.h"

#include <fcntl.h>

#include <optional>

#include "core/atomic_file.h"
#include "core/digest.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text_file.h"
#include "data/little_endian.h"
#include "data/trace_format.h"
#include "data/trace_record.h"

namespace distill::data {
namespace {

namespace format = trace_format;
using Bytes = std::span<const std::byte>;

void append_frame(std::vector<std::byte>& out, Bytes body) {
  core::check(body.size() <= format::kMaxFrameBytes, "a record of {} bytes is too long for a journal", body.size());
  std::vector<std::byte> head;
  append_value(head, format::kFrameMagic);
  append_value(head, static_cast<uint32_t>(body.size()));
  append_value(head, core::crc32c(body, core::crc32c(head)));
  append(out, Bytes(head));
  append(out, body);
}

// The body of the frame that begins at `at`, if there is a whole and undamaged one.
std::optional<Bytes> frame_at(Bytes file, size_t at) {
  if (file.size() - at < format::kFrameHeadBytes) return {};
  const std::byte* head = file.data() + at;
  const auto bytes = load<uint32_t>(head, 1);
  if (load<uint32_t>(head) != format::kFrameMagic || bytes > file.size() - at - format::kFrameHeadBytes) return {};
  const Bytes body = file.subspan(at + format::kFrameHeadBytes, bytes);
  if (core::crc32c(body, core::crc32c({head, 8})) != load<uint32_t>(head, 2)) return {};
  return body;
}

}  // namespace

TraceJournal::TraceJournal(std::filesystem::path path, const TraceProvenance& provenance) : path_(std::move(path)) {
  if (!std::filesystem::exists(path_)) {
    std::vector<std::byte> first;
    const std::string text = provenance.to_json().dump();
    append_frame(first, std::as_bytes(std::span(text)));
    create(first);
  } else {
    core::with_context(path_.string(), [&] { replay(provenance); });
  }
}

// Writes a whole journal in one step, so that there is never one without provenance.
void TraceJournal::create(Bytes frames) {
  core::AtomicFile file(path_);
  file.write(frames);
  file.commit();
  fd_ = core::FileDescriptor(::open(path_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
  if (!fd_) core::fail_errno("open", path_);
  size_ = frames.size();
}

void TraceJournal::replay(const TraceProvenance& provenance) {
  const auto mapped = core::MappedFile::open(path_);
  const Bytes file = mapped->bytes();
  const auto first = frame_at(file, 0);
  core::check(
      first.has_value(),
      "damaged: its first record, which says what the traces belong to, cannot be read; move the file away to go "
      "on without the documents in it");
  const std::string_view text(reinterpret_cast<const char*>(first->data()), first->size());
  const TraceProvenance written = TraceProvenance::from_json(core::parse_json(text), "provenance");
  if (const std::string difference = written.difference(provenance); !difference.empty()) {
    core::fail("holds unfinished traces that were made with other settings ({}); choose another directory", difference);
  }

  size_t at = format::kFrameHeadBytes + first->size(), whole = at, damaged = 0;
  while (at < file.size()) {
    const auto body = frame_at(file, at);
    if (!body) {
      // Looks for the next whole frame: what lies between is damaged; if there is none, it is a record cut short.
      size_t next = at + 1;
      while (next < file.size() && !frame_at(file, next)) ++next;
      if (next == file.size()) break;
      ++damaged;
      at = next;
      continue;
    }
    const TraceRecord record = decode_record(*body, provenance.vocab_size);
    entries_.push_back({record.document.key, at + format::kFrameHeadBytes, static_cast<uint32_t>(body->size())});
    at += format::kFrameHeadBytes + body->size();
    whole = at;
  }
  if (damaged > 0) {
    core::log::warn("{}: {} damaged record(s) left out; their documents will be made again", path_.string(), damaged);
    std::vector<std::byte> kept;
    append_frame(kept, *first);
    for (Entry& entry : entries_) {
      const Bytes body = file.subspan(entry.offset, entry.bytes);
      entry.offset = kept.size() + format::kFrameHeadBytes;
      append_frame(kept, body);
    }
    create(kept);
    return;
  }
  fd_ = core::FileDescriptor(::open(path_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
  if (!fd_) core::fail_errno("open", path_);
  size_ = whole;
  if (whole == file.size()) return;
  core::log::info("{}: the last record was cut short and is removed; its document will be made again", path_.string());
  if (::ftruncate(fd_.get(), static_cast<off_t>(whole)) != 0) core::fail_errno("cut", path_);
  core::sync_file(fd_.get(), path_);
}

void TraceJournal::append(const TraceKey& key, Bytes record) {
  pending_entries_.push_back(
      {key, size_ + pending_.size() + format::kFrameHeadBytes, static_cast<uint32_t>(record.size())});
  append_frame(pending_, record);
  write();
}

void TraceJournal::write() {
  if (pending_.empty()) return;
  try {
    core::write_all(fd_.get(), pending_.data(), pending_.size(), path_);
  } catch (...) {
    // A later attempt should not have to go behind half a record.
    if (::ftruncate(fd_.get(), static_cast<off_t>(size_)) != 0) core::log::warn("cannot cut {}", path_.string());
    throw;
  }
  size_ += pending_.size();
  entries_.insert(entries_.end(), pending_entries_.begin(), pending_entries_.end());
  pending_.clear();
  pending_entries_.clear();
}

void TraceJournal::sync() {
  core::sync_file(fd_.get(), path_);
}

Bytes TraceJournal::record(const core::MappedFile& file, const Entry& entry) {
  const auto body = frame_at(file.bytes(), entry.offset - format::kFrameHeadBytes);
  core::check(body && body->size() == entry.bytes, "{}: the record of prompt '{}' sample {} was damaged",
              file.path().string(), entry.key.prompt_id, entry.key.sample);
  return *body;
}

void TraceJournal::remove() {
  fd_.close();
  std::filesystem::remove(path_);
  core::sync_parent_folder(path_);
}

std::vector<std::byte> encode_journal_payload(const TargetCodec& codec, const TraceProvenance& provenance,
                                              const Trace& trace) {
  const uint64_t hidden = provenance.hidden_bytes(trace.document.completion_length());
  core::check(trace.hidden_states.size() == hidden, "{} bytes of hidden states instead of {}",
              trace.hidden_states.size(), hidden);
  std::vector<std::byte> fidelity, payload;
  if (trace.targets.fidelity) fidelity = trace.targets.fidelity->to_bytes();
  append_value(payload, static_cast<uint32_t>(fidelity.size()));
  append(payload, Bytes(fidelity));
  append(payload, Bytes(trace.hidden_states));
  codec.encode(trace.document, trace.targets, payload);
  return payload;
}

JournalPayload decode_journal_payload(const TargetCodec& codec, const TraceProvenance& provenance,
                                      TraceDocument& document, Bytes payload) {
  core::check(payload.size() >= 4, "a payload of {} bytes", payload.size());
  const auto bytes = load<uint32_t>(payload.data());
  payload = payload.subspan(4);
  core::check(bytes <= payload.size(), "a fidelity record of {} bytes in a payload of {}", bytes, payload.size());
  const Bytes fidelity = payload.first(bytes);
  payload = payload.subspan(bytes);
  const uint64_t hidden = provenance.hidden_bytes(document.completion_length());
  core::check(hidden <= payload.size(), "hidden states of {} bytes in a payload of {}", hidden, payload.size());
  JournalPayload result{.targets = {}, .hidden_states = payload.first(hidden)};
  codec.decode(document, payload.subspan(hidden), result.targets);
  if (!fidelity.empty()) result.targets.fidelity = DocumentFidelity::from_bytes(fidelity);
  return result;
}

}  // namespace distill::data
