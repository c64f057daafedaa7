#include "core/shared_files.h"

#include "core/error.h"

namespace distill::core {

std::filesystem::path shared_file(std::string_view name) {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) fail("cannot find the folder of this program, and so not share/distill/{}: {}", name, error.message());
  const auto path = program.parent_path().parent_path() / "share" / "distill" / name;
  check(std::filesystem::exists(path), "{} is missing: this installation of distill is incomplete", path.string());
  return path;
}

}  // namespace distill::core
