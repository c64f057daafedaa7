#include "core/file_descriptor.h"

#include <fcntl.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace distill::core {

void fail_errno(std::string_view action, const std::filesystem::path& path) {
  const int code = errno;
  fail("cannot {} {}: {}", action, path.string(), std::strerror(code));
}

void write_all(int fd, const void* data, size_t size, const std::filesystem::path& path) {
  const char* next = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(fd, next, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_errno("write", path);
    next += written;
    size -= static_cast<size_t>(written);
  }
}

void sync_file(int fd, const std::filesystem::path& path) {
  if (::fsync(fd) != 0) fail_errno("sync", path);
}

void sync_parent_folder(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const FileDescriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) fail_errno("open folder", folder);
  sync_file(fd.get(), folder);
}

}  // namespace distill::core
