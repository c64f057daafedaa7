#include "core/atomic_file.h"

#include <fcntl.h>
#include <stdio.h>

#include <system_error>
#include <utility>

#include "core/error.h"

namespace distill::core {
namespace {

// Beside `path`, so that the rename stays within one file system; named by process, so that two writers don't collide.
std::filesystem::path temporary_beside(const std::filesystem::path& path) {
  std::filesystem::path name = path.filename();
  name += fmt::format(".tmp-{}", ::getpid());
  return path.parent_path() / name;
}

void sync_tree(const std::filesystem::path& folder) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const FileDescriptor fd(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) fail_errno("open", entry.path());
    sync_file(fd.get(), entry.path());
  }
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)), temporary_(temporary_beside(path_)) {
  fd_ = FileDescriptor(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!fd_) fail_errno("create", temporary_);
}

AtomicFile::~AtomicFile() {
  if (!fd_) return;
  fd_.close();
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write_all(fd_.get(), bytes.data(), bytes.size(), temporary_);
}

void AtomicFile::commit() {
  sync_file(fd_.get(), temporary_);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_errno("rename a temporary file to", path_);
  fd_.close();
  sync_parent_folder(path_);
}

void write_file_atomically(const std::filesystem::path& path, std::string_view contents) {
  AtomicFile file(path);
  file.write(contents);
  file.commit();
}

AtomicDirectory::AtomicDirectory(std::filesystem::path final_path) : final_path_(std::move(final_path)) {
  if (!final_path_.has_filename()) final_path_ = final_path_.parent_path();  // "out/" names the folder "out"
  temporary_ = temporary_beside(final_path_);
  std::filesystem::remove_all(temporary_);
  std::error_code error;
  std::filesystem::create_directories(temporary_, error);
  check(!error, "cannot create folder {}: {}", temporary_.string(), error.message());
}

AtomicDirectory::~AtomicDirectory() {
  if (temporary_.empty()) return;
  std::error_code ignored;
  std::filesystem::remove_all(temporary_, ignored);
}

void AtomicDirectory::commit() {
  sync_tree(temporary_);
  sync_parent_folder(temporary_ / ".");
  // A folder cannot be renamed over a filled one, so an old one is swapped out in one step and then removed.
  if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, final_path_.c_str(), RENAME_EXCHANGE) == 0) {
    std::filesystem::remove_all(temporary_);
  } else if (::rename(temporary_.c_str(), final_path_.c_str()) != 0) {
    fail_errno("rename a temporary folder to", final_path_);
  }
  temporary_.clear();
  sync_parent_folder(final_path_);
}

}  // namespace distill::core
