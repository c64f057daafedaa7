#include "distill/tensorboard_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <cstring>

#include "core/digest.h"
#include "core/error.h"

namespace distill {
namespace {

// Little-endian bytes of an integer, as the frames and protobuf's fixed fields have them.
template <typename T>
void append_fixed(std::string& out, T value) {
  for (size_t byte = 0; byte < sizeof value; ++byte) out += static_cast<char>(value >> (8 * byte) & 0xFF);
}

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

enum WireType : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void append_tag(std::string& out, int field, WireType type) {
  append_varint(out, static_cast<uint64_t>(field) << 3 | type);
}

void append_bytes(std::string& out, int field, std::string_view bytes) {
  append_tag(out, field, kBytes);
  append_varint(out, bytes.size());
  out += bytes;
}

// An Event without its content.
std::string begin_event(int64_t step) {
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::string event;
  append_tag(event, 1, kFixed64);
  append_fixed(event, std::bit_cast<uint64_t>(now));
  append_tag(event, 2, kVarint);
  append_varint(event, static_cast<uint64_t>(step));
  return event;
}

uint32_t masked_crc(std::string_view bytes) {
  return std::rotr(core::crc32c(std::as_bytes(std::span(bytes))), 15) + 0xa282ead8u;
}

std::string file_name() {
  char host[256] = "localhost";
  ::gethostname(host, sizeof host - 1);
  const auto seconds = std::chrono::system_clock::now().time_since_epoch() / std::chrono::seconds(1);
  return fmt::format("events.out.tfevents.{:010}.{}.{}", seconds, host, ::getpid());
}

}  // namespace

TensorboardWriter::TensorboardWriter(const std::filesystem::path& directory, int64_t first_step) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  core::check(!error, "cannot create folder {}: {}", directory.string(), error.message());
  path_ = directory / file_name();
  fd_ = core::FileDescriptor(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!fd_) core::fail_errno("create", path_);
  std::string version = begin_event(0);
  append_bytes(version, 3, "brain.Event:2");
  write_record(version);
  std::string start = begin_event(first_step);
  std::string session;
  append_tag(session, 1, kVarint);
  append_varint(session, 1);
  append_bytes(start, 7, session);
  write_record(start);
}

void TensorboardWriter::write(int64_t step, std::string_view prefix, const Scalars& scalars) {
  std::string summary;
  for (const auto& [name, value] : scalars) {
    std::string entry;
    append_bytes(entry, 1, fmt::format("{}/{}", prefix, name));
    append_tag(entry, 2, kFixed32);
    append_fixed(entry, std::bit_cast<uint32_t>(static_cast<float>(value)));
    append_bytes(summary, 1, entry);
  }
  std::string event = begin_event(step);
  append_bytes(event, 5, summary);
  write_record(event);
}

void TensorboardWriter::write_record(const std::string& data) {
  std::string record;
  append_fixed<uint64_t>(record, data.size());
  append_fixed(record, masked_crc(record));
  record += data;
  append_fixed(record, masked_crc(data));
  core::write_all(fd_.get(), record.data(), record.size(), path_);
}

}  // namespace distill
