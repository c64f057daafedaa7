#include "core/atomic_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/text_file.h"
#include "tests/temporary_folder.h"

namespace distill::core {
namespace {

size_t entries_in(const std::filesystem::path& folder) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

TEST(AtomicFile, ReplacesTheOldFileOnlyOnCommit) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "file";
  write_file_atomically(path, "old");
  AtomicFile file(path);
  file.write("new");
  EXPECT_EQ(read_file(path), "old");
  file.commit();
  EXPECT_EQ(read_file(path), "new");
}

TEST(AtomicFile, LeavesNothingBehindWithoutCommit) {
  const TemporaryFolder folder;
  { AtomicFile(folder.path() / "file").write("half"); }
  EXPECT_EQ(entries_in(folder.path()), 0u);
}

TEST(AtomicFile, NamesTheFileItCannotCreate) {
  try {
    AtomicFile file("/nonexistent-folder/file");
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("/nonexistent-folder/file"),
                                             testing::HasSubstr("No such file or directory")));
  }
}

TEST(AtomicFile, SaysThatTheDiskIsFull) {
  try {
    write_all(FileDescriptor(::open("/dev/full", O_WRONLY)).get(), "x", 1, "/dev/full");
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "cannot write /dev/full: No space left on device");
  }
}

TEST(AtomicDirectory, ReplacesAFilledFolderAsAWhole) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "checkpoint";
  for (const char* contents : {"first", "second"}) {
    AtomicDirectory directory(path);
    std::filesystem::create_directories(directory.path() / "nested");
    write_file_atomically(directory.path() / "nested" / "file", contents);
    directory.commit();
    EXPECT_EQ(read_file(path / "nested" / "file"), contents);
  }
  EXPECT_EQ(entries_in(folder.path()), 1u);
}

TEST(AtomicDirectory, IsRemovedWithoutCommit) {
  const TemporaryFolder folder;
  { const AtomicDirectory directory(folder.path() / "checkpoint/"); }
  EXPECT_EQ(entries_in(folder.path()), 0u);
}

}  // namespace
}  // namespace distill::core
