#include "data/trace_writer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include <cstring>
#include <fstream>
#include <map>
#include <set>

#include "core/file_descriptor.h"
#include "core/log.h"
#include "core/text_file.h"
#include "data/trace_reader.h"
#include "data/trace_shard.h"
#include "tests/data/expect_error.h"
#include "tests/data/sample_traces.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

class TraceWriterTest : public testing::Test {
 protected:
  // Recovery is meant to be noisy; here it would hide the results.
  static void SetUpTestSuite() { core::log::initialise("off"); }
  fs::path directory() const { return folder_.path() / "set"; }
  std::map<std::string, std::string> shards(const fs::path& path) const {
    std::map<std::string, std::string> result;
    for (const auto& entry : fs::directory_iterator(path)) {
      if (entry.path().extension() == ".h5") result[entry.path().filename().string()] = core::read_file(entry.path());
    }
    return result;
  }
  // What an uninterrupted run leaves.
  std::map<std::string, std::string> expected(const std::vector<Trace>& traces,
                                              const TraceWriterOptions& options) const {
    TraceWriter writer(folder_.path() / "expected", provenance_, options);
    for (const Trace& trace : traces) writer.append(trace);
    writer.finish();
    return shards(folder_.path() / "expected");
  }
  // Goes on with an interrupted run as a generation does.
  void complete(const std::vector<Trace>& traces, const TraceWriterOptions& options) const {
    TraceWriter writer(directory(), provenance_, options);
    for (const Trace& trace : traces) {
      if (!writer.contains(trace.document.key)) writer.append(trace);
    }
    writer.finish();
  }
  TemporaryFolder folder_{TemporaryFolder::memory()};
  TraceProvenance provenance_ = sample_provenance();
};

TEST_F(TraceWriterTest, SealsAFullShardAndBeginsAnother) {
  const auto traces = sample_traces(10, provenance_);
  TraceWriter writer(directory(), provenance_, {.documents_per_shard = 4});
  for (const Trace& trace : traces) writer.append(trace);
  EXPECT_EQ(shards(directory()).size(), 2);
  EXPECT_TRUE(fs::exists(directory() / "shard-00002.journal"));
  writer.finish();
  EXPECT_EQ(shards(directory()).size(), 3);
  EXPECT_FALSE(fs::exists(directory() / "shard-00002.journal"));
  EXPECT_EQ(TraceReader::open(directory()).size(), 10);
  EXPECT_THAT(error_of([&] { writer.append(traces[0]); }), HasSubstr("the writer is finished"));
}

// Whether the traces have hidden states.
class InterruptedTraceWriter : public TraceWriterTest, public testing::WithParamInterface<bool> {
 protected:
  InterruptedTraceWriter() {
    if (GetParam()) provenance_ = with_hidden_states(provenance_);
  }
};
INSTANTIATE_TEST_SUITE_P(HiddenStates, InterruptedTraceWriter, testing::Bool());

TEST_P(InterruptedTraceWriter, GoesOnWhereAnEarlierRunStopped) {
  const auto traces = sample_traces(10, provenance_);
  const TraceWriterOptions options{.documents_per_shard = 4};
  const auto complete_set = expected(traces, options);
  for (size_t stop = 0; stop <= traces.size(); ++stop) {
    fs::remove_all(directory());
    {
      TraceWriter writer(directory(), provenance_, options);
      for (size_t i = 0; i < stop; ++i) writer.append(traces[i]);
    }
    {
      const TraceWriter writer(directory(), provenance_, options);
      EXPECT_EQ(writer.documents(), stop);
      for (size_t i = 0; i < traces.size(); ++i) EXPECT_EQ(writer.contains(traces[i].document.key), i < stop);
    }
    complete(traces, options);
    EXPECT_TRUE(shards(directory()) == complete_set) << stop;
  }
}

// The process is killed without warning after a random time; what it had reported must be there.
TEST_P(InterruptedTraceWriter, KeepsFinishedDocumentsAfterKill) {
  const auto traces = sample_traces(60, provenance_);
  const TraceWriterOptions options{.documents_per_shard = 7, .documents_per_sync = 5};
  const auto complete_set = expected(traces, options);
  core::Philox random(20, 0, 0);
  for (int round = 0; round < 200; ++round) {
    fs::remove_all(directory());
    int reports[2];
    ASSERT_EQ(::pipe(reports), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      TraceWriter writer(directory(), provenance_, options);
      for (const Trace& trace : traces) {
        writer.append(trace);
        if (::write(reports[1], "x", 1) != 1) ::_exit(1);
      }
      ::_exit(0);
    }
    ::close(reports[1]);
    // Killed a random time after a random number of documents is reported, in the middle of whatever it does then.
    const uint32_t wait_for = random.next_below(static_cast<uint32_t>(traces.size()));
    size_t reported = 0;
    char byte = 0;
    while (reported < wait_for && ::read(reports[0], &byte, 1) == 1) ++reported;
    ::usleep(random.next_below(2000));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    while (::read(reports[0], &byte, 1) == 1) ++reported;
    ::close(reports[0]);
    {
      const TraceWriter writer(directory(), provenance_, options);
      for (size_t i = 0; i < reported; ++i) ASSERT_TRUE(writer.contains(traces[i].document.key)) << round << ' ' << i;
      ASSERT_LE(writer.documents(), reported + 1);
    }
    complete(traces, options);
    ASSERT_TRUE(shards(directory()) == complete_set) << round;
  }
}

// What a power cut may leave of the last record: any part of it.
TEST_P(InterruptedTraceWriter, ResumesFromAJournalCutAtEveryByteOfItsLastRecord) {
  const auto traces = sample_traces(4, provenance_);
  const auto complete_set = expected(traces, {});
  const fs::path journal = directory() / "shard-00000.journal";
  uint64_t before = 0;
  {
    TraceWriter writer(directory(), provenance_);
    for (size_t i = 0; i < 2; ++i) writer.append(traces[i]);
    before = fs::file_size(journal);
    writer.append(traces[2]);
  }
  const std::string contents = core::read_file(journal);
  for (uint64_t size = before; size <= contents.size(); ++size) {
    std::ofstream(journal, std::ios::binary | std::ios::trunc) << contents.substr(0, size);
    TraceWriter writer(directory(), provenance_);
    ASSERT_EQ(writer.documents(), size == contents.size() ? 3 : 2) << size;
    ASSERT_EQ(fs::file_size(journal), size == contents.size() ? size : before);
  }
  complete(traces, {});
  EXPECT_TRUE(shards(directory()) == complete_set);
}

TEST_P(InterruptedTraceWriter, LeavesOutOnlyTheRecordThatIsDamaged) {
  const auto traces = sample_traces(3, provenance_);
  const auto complete_set = expected(traces, {});
  const fs::path journal = directory() / "shard-00000.journal";
  std::vector<uint64_t> ends;
  {
    TraceWriter writer(directory(), provenance_);
    for (const Trace& trace : traces) {
      writer.append(trace);
      ends.push_back(fs::file_size(journal));
    }
  }
  const std::string contents = core::read_file(journal);
  for (uint64_t byte = ends[0]; byte < ends[1]; byte += 5) {
    std::string copy = contents;
    copy[byte] ^= 0x10;
    std::ofstream(journal, std::ios::binary | std::ios::trunc) << copy;
    const TraceWriter writer(directory(), provenance_);
    ASSERT_TRUE(writer.contains(traces[0].document.key));
    ASSERT_FALSE(writer.contains(traces[1].document.key)) << byte;
    ASSERT_TRUE(writer.contains(traces[2].document.key));
  }
  std::string copy = contents;
  copy[20] ^= 1;
  std::ofstream(journal, std::ios::binary | std::ios::trunc) << copy;
  EXPECT_THAT(error_of([&] { TraceWriter(directory(), provenance_); }),
              HasSubstr("shard-00000.journal: damaged: its first record"));
  std::ofstream(journal, std::ios::binary | std::ios::trunc) << contents;
  complete(traces, {});
  EXPECT_TRUE(shards(directory()) == complete_set);
}

TEST_F(TraceWriterTest, ForgetsTheJournalOfAShardThatWasSealedJustBeforeTheEnd) {
  const auto traces = sample_traces(5, provenance_);
  const fs::path journal = directory() / "shard-00000.journal";
  std::string contents;
  {
    TraceWriter writer(directory(), provenance_);
    for (const Trace& trace : traces) writer.append(trace);
    contents = core::read_file(journal);
    writer.finish();
  }
  std::ofstream(journal, std::ios::binary) << contents;
  std::ofstream(directory() / "shard-00001.h5.tmp-4711") << "half a shard";
  TraceWriter writer(directory(), provenance_);
  EXPECT_EQ(writer.documents(), 5);
  EXPECT_FALSE(fs::exists(journal));
  EXPECT_FALSE(fs::exists(directory() / "shard-00001.h5.tmp-4711"));
  writer.finish();
  EXPECT_EQ(shards(directory()).size(), 1);
}

TEST_F(TraceWriterTest, RefusesASecondWriterOfTheSameShards) {
  TraceWriter writer(directory(), provenance_);
  EXPECT_THAT(error_of([&] { TraceWriter(directory(), provenance_); }),
              HasSubstr("another process (" + std::to_string(::getpid()) + ") is writing 'shard' shards there"));
  TraceWriter other(directory(), provenance_, {.name = "shard-of-2"});
  const auto traces = sample_traces(4, provenance_);
  for (size_t i = 0; i < traces.size(); ++i) (i % 2 == 0 ? writer : other).append(traces[i]);
  writer.finish();
  other.finish();
  EXPECT_EQ(TraceReader::open(directory()).size(), 4);
}

TEST_F(TraceWriterTest, RefusesToMixTracesOfDifferentProvenance) {
  const auto traces = sample_traces(2, provenance_);
  TraceProvenance other = provenance_;
  other.tokenizer = std::string(64, '9');
  {
    TraceWriter writer(directory(), provenance_);
    writer.append(traces[0]);
  }
  EXPECT_THAT(error_of([&] { TraceWriter(directory(), other); }),
              testing::AllOf(HasSubstr("shard-00000.journal"), HasSubstr("fingerprints tokenizer"),
                             HasSubstr("choose another")));
  complete(traces, {});
  EXPECT_THAT(
      error_of([&] { TraceWriter(directory(), other); }),
      testing::AllOf(HasSubstr("shard-00000.h5"), HasSubstr("fingerprints tokenizer"), HasSubstr("choose another")));
  EXPECT_THAT(error_of([&] { TraceWriter(directory(), with_hidden_states(provenance_)); }), HasSubstr("hidden_states"));
  other = provenance_;
  other.command = "another command line";
  other.version = "0.2.0";
  EXPECT_EQ(TraceWriter(directory(), other).documents(), 2);
}

TEST_F(TraceWriterTest, RefusesTracesThatNoShardCanHold) {
  TraceWriter writer(directory(), provenance_);
  const Trace good = sample_trace("p", 0, provenance_);
  const auto error_with = [&](auto&& change) {
    Trace trace = good;
    change(trace);
    return error_of([&] { writer.append(trace); });
  };
  EXPECT_THAT(error_with([](Trace& t) { t.document.key.prompt_id.clear(); }), HasSubstr("a prompt id of 0 bytes"));
  EXPECT_THAT(error_with([](Trace& t) { t.document.key.prompt_id = "\xff"; }), HasSubstr("not valid UTF-8"));
  EXPECT_THAT(error_with([](Trace& t) { t.document.tokens[1] = 50; }), HasSubstr("outside the vocabulary of 50"));
  EXPECT_THAT(error_with([](Trace& t) { t.document.prompt_length = 0; }), HasSubstr("length 0"));
  EXPECT_THAT(error_with([](Trace& t) { t.document.log_probability = NAN; }), HasSubstr("log-probability"));
  EXPECT_THAT(error_with([](Trace& t) { t.document.tokens.push_back(1); }), HasSubstr("targets for"));
  EXPECT_THAT(error_with([](Trace& t) { t.targets.ids[1] = t.targets.ids[0]; }), HasSubstr("appears twice"));
  EXPECT_THAT(error_with([](Trace& t) { t.targets.weights[0] = NAN; }), HasSubstr("sum to"));
  EXPECT_THAT(error_with([](Trace& t) { t.hidden_states.resize(1); }), HasSubstr("1 bytes of hidden states"));
  writer.append(good);
  EXPECT_THAT(error_of([&] { writer.append(good); }), HasSubstr("already there"));
}

TEST_F(TraceWriterTest, LeavesNothingBehindWithoutTraces) {
  TraceWriter(directory(), provenance_).finish();
  EXPECT_TRUE(shards(directory()).empty());
  EXPECT_THAT(error_of([&] { TraceReader::open(directory()); }), HasSubstr("no trace shards"));
}

TEST_F(TraceWriterTest, NamesADirectoryThatCannotBeWritten) {
  EXPECT_THAT(error_of([&] { TraceWriter("/proc/distill-traces", provenance_); }), HasSubstr("/proc/distill-traces"));
  fs::create_directory(directory());
  fs::permissions(directory(), fs::perms::owner_read | fs::perms::owner_exec);
  // Root may write anywhere, so the test does it as nobody.
  const bool root = ::geteuid() == 0;
  fs::permissions(folder_.path(), fs::perms::all);
  ASSERT_EQ(::seteuid(root ? 65534 : ::geteuid()), 0);
  const std::string message = error_of([&] { TraceWriter(directory(), provenance_); });
  ASSERT_EQ(::seteuid(root ? 0 : ::geteuid()), 0);
  EXPECT_THAT(message, testing::AllOf(HasSubstr("shard.lock"), HasSubstr("Permission denied")));
}

// A file system of 256 KiB; needs the right to mount one.
class FullDisk : public TraceWriterTest {
 protected:
  void SetUp() override {
    fs::create_directory(directory());
    if (::mount("tmpfs", directory().c_str(), "tmpfs", 0, "size=256k") != 0) {
      GTEST_SKIP() << "mounting a small file system is not permitted here: " << std::strerror(errno);
    }
    mounted_ = true;
  }
  void TearDown() override {
    if (mounted_) ::umount2(directory().c_str(), MNT_DETACH);
  }
  void fill() {
    std::ofstream file(directory() / "ballast", std::ios::binary);
    const std::string block(4096, 'x');
    while (file.write(block.data(), static_cast<std::streamsize>(block.size())).flush()) continue;
  }
  bool mounted_ = false;
};

TEST_F(FullDisk, LosesNothingWhenTheJournalDoesNotFit) {
  const auto traces = sample_traces(300, provenance_, 100);
  TraceWriterOptions options{.documents_per_sync = 1};
  size_t done = 0;
  std::string message;
  {
    TraceWriter writer(directory(), provenance_, options);
    while (message.empty() && done < traces.size()) {
      message = error_of([&] { writer.append(traces[done]); });
      if (message.empty()) ++done;
    }
    EXPECT_THAT(message, testing::AllOf(HasSubstr("shard-00000.journal"), HasSubstr("No space left on device")));
    ASSERT_LT(done, traces.size());
  }
  const TraceWriter writer(directory(), provenance_, options);
  EXPECT_EQ(writer.documents(), done);
}

TEST_F(FullDisk, GoesOnOnceThereIsRoomAgain) {
  const auto traces = sample_traces(3, provenance_, 100);
  TraceWriter writer(directory(), provenance_);
  writer.append(traces[0]);
  fill();
  std::string message;
  for (size_t i = 1; i < 3; ++i) message = error_of([&] { writer.append(traces[i]); });
  EXPECT_THAT(message, HasSubstr("No space left on device"));
  EXPECT_THAT(error_of([&] { writer.finish(); }), HasSubstr("No space left on device"));
  fs::remove(directory() / "ballast");
  writer.finish();
  EXPECT_EQ(TraceReader::open(directory()).size(), 3);
}

TEST_F(FullDisk, KeepsTheJournalWhenTheShardDoesNotFit) {
  const auto traces = sample_traces(5, provenance_, 100);
  {
    TraceWriter writer(directory(), provenance_);
    for (const Trace& trace : traces) writer.append(trace);
    fill();
    EXPECT_THAT(error_of([&] { writer.finish(); }),
                testing::AllOf(HasSubstr("shard-00000.h5"), HasSubstr("No space left")));
  }
  EXPECT_TRUE(shards(directory()).empty());
  fs::remove(directory() / "ballast");
  complete(traces, {});
  EXPECT_TRUE(shards(directory()) == expected(traces, {}));
}

}  // namespace
}  // namespace distill::data
