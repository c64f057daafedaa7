// Files and folders that appear under their final name only when they are complete and on disk.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

#include "core/file_descriptor.h"

namespace distill::core {

// Writes to a temporary file beside `path`; commit() syncs it and renames it over `path`. Without commit() the
// temporary file is removed and `path` stays as it was. Throws Error naming the file (full disk, no permission, ...).
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  void write(std::span<const std::byte> bytes);
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  FileDescriptor fd_;
};

void write_file_atomically(const std::filesystem::path& path, std::string_view contents);

// A folder to fill at path(); commit() syncs every file in it and renames it to `final_path`, replacing a folder
// already there. Without commit() it is removed.
class AtomicDirectory {
 public:
  explicit AtomicDirectory(std::filesystem::path final_path);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  const std::filesystem::path& path() const { return temporary_; }
  void commit();

 private:
  std::filesystem::path final_path_;
  std::filesystem::path temporary_;
};

}  // namespace distill::core
