#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "core/error.h"
#include "core/file_descriptor.h"

namespace distill::core {

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) fail_errno("open", path);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) fail_errno("read the size of", path);
  check(S_ISREG(status.st_mode), "cannot read {}: not a regular file", path.string());

  std::span<const std::byte> bytes;
  if (const auto size = static_cast<size_t>(status.st_size); size > 0) {
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
    if (data == MAP_FAILED) fail_errno("map", path);
    bytes = {static_cast<const std::byte*>(data), size};
  }
  return std::shared_ptr<const MappedFile>(new MappedFile(path, bytes));
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace distill::core
