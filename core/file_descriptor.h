// An open POSIX file descriptor that closes itself, and the system call failures that name the file.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <string_view>
#include <utility>

namespace distill::core {

class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() { close(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

// Throws Error "cannot <action> <path>: <reason of errno>".
[[noreturn]] void fail_errno(std::string_view action, const std::filesystem::path& path);

// Writes all of `data`, retrying short writes. Throws Error naming `path`.
void write_all(int fd, const void* data, size_t size, const std::filesystem::path& path);

// fsync of an open file, and of the folder that holds `path` (so that a rename or new file in it survives a power cut).
void sync_file(int fd, const std::filesystem::path& path);
void sync_parent_folder(const std::filesystem::path& path);

}  // namespace distill::core
