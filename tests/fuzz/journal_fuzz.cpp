// Fuzzes the replay of a journal. The input is cut into pieces by its own bytes: a byte that says what follows (whether
// it is put into a frame with right checksums, or lies there as it is), two bytes for how much, and that much. A sound
// frame with the provenance may come first, of traces with hidden states or without.
#include <fcntl.h>

#include <memory>
#include <string>
#include <vector>

#include "core/digest.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text_file.h"
#include "data/little_endian.h"
#include "data/trace_format.h"
#include "data/trace_journal.h"
#include "data/trace_record.h"
#include "tests/data/sample_traces.h"

namespace {

using namespace distill::data;
namespace format = trace_format;

void append_frame(std::vector<std::byte>& file, std::span<const std::byte> body) {
  std::vector<std::byte> head;
  append_value(head, format::kFrameMagic);
  append_value(head, static_cast<uint32_t>(body.size()));
  append_value(head, distill::core::crc32c(body, distill::core::crc32c(head)));
  append(file, std::span<const std::byte>(head));
  append(file, body);
}

std::vector<std::byte> journal_of(std::span<const std::byte> input, const TraceProvenance& provenance) {
  std::vector<std::byte> file;
  if (!input.empty() && static_cast<uint8_t>(input[0]) < 128) {
    const std::string text = provenance.to_json().dump();
    append_frame(file, std::as_bytes(std::span(text)));
  }
  for (size_t at = 0; at + 3 <= input.size();) {
    const auto kind = static_cast<uint8_t>(input[at]);
    const size_t size = std::min<size_t>(load<uint16_t>(input.data() + at + 1), input.size() - at - 3);
    const auto piece = input.subspan(at + 3, size);
    kind % 4 == 0 ? append(file, piece) : append_frame(file, piece);
    at += 3 + size;
  }
  return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const TraceProvenance without = sample_provenance("threshold:4", 40);
  static const TraceProvenance with = with_hidden_states(without);
  const TraceProvenance& provenance = size > 0 && (data[0] & 64) != 0 ? with : without;
  static const auto codec = TargetCodec::lossless(provenance);
  static const std::string path = "/dev/shm/distill-journal-fuzz-" + std::to_string(::getpid());
  static const bool quiet = (distill::core::log::initialise("off"), true);
  static_cast<void>(quiet);
  const auto file = journal_of(std::as_bytes(std::span(data, size)), provenance);
  {
    const distill::core::FileDescriptor fd(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    distill::core::write_all(fd.get(), file.data(), file.size(), path);
  }
  try {
    std::vector<TraceKey> keys;
    {
      const TraceJournal journal(path, provenance);
      const auto mapped = journal.map();
      for (const auto& entry : journal.entries()) {
        keys.push_back(entry.key);
        TraceRecord record = decode_record(TraceJournal::record(*mapped, entry), provenance.vocab_size);
        try {
          const auto payload = decode_journal_payload(*codec, provenance, record.document, record.payload);
          const auto positions = static_cast<size_t>(record.document.completion_length());
          if (payload.targets.positions() != positions) __builtin_trap();
          if (payload.hidden_states.size() != provenance.hidden_bytes(record.document.completion_length())) {
            __builtin_trap();
          }
        } catch (const distill::core::Error&) {
        }
      }
    }
    // What was replayed once is sound: another replay finds the same.
    const TraceJournal again(path, provenance);
    if (again.entries().size() != keys.size()) __builtin_trap();
    for (size_t i = 0; i < keys.size(); ++i) {
      if (again.entries()[i].key != keys[i]) __builtin_trap();
    }
  } catch (const distill::core::Error&) {
  }
  return 0;
}
