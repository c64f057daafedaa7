#include "data/trace_shard.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "core/digest.h"
#include "core/file_descriptor.h"
#include "core/text_file.h"
#include "data/trace_format.h"
#include "data/trace_reader.h"
#include "data/trace_writer.h"
#include "tests/data/expect_error.h"
#include "tests/data/sample_traces.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

void expect_equal(const Trace& actual, const Trace& expected) {
  EXPECT_EQ(actual.document.key, expected.document.key);
  EXPECT_EQ(actual.document.tokens, expected.document.tokens);
  EXPECT_EQ(actual.document.prompt_length, expected.document.prompt_length);
  EXPECT_EQ(actual.document.finish_reason, expected.document.finish_reason);
  EXPECT_EQ(actual.document.verdict, expected.document.verdict);
  EXPECT_EQ(actual.document.log_probability, expected.document.log_probability);
  EXPECT_EQ(actual.document.seed, expected.document.seed);
  EXPECT_EQ(actual.targets.offsets, expected.targets.offsets);
  EXPECT_EQ(actual.targets.ids, expected.targets.ids);
  EXPECT_EQ(actual.targets.weights, expected.targets.weights);
  EXPECT_EQ(actual.targets.uncovered, expected.targets.uncovered);
}

std::vector<std::byte> hidden_states_of(const TraceShard& shard, size_t index) {
  const auto states = shard.hidden_states(index);
  return {states.begin(), states.end()};
}

class TraceShardTest : public testing::Test {
 protected:
  std::filesystem::path write(const std::vector<Trace>& traces, const TraceProvenance& provenance,
                              const std::string& name = "set", bool entropy_coded = false) {
    TraceWriter writer(folder_.path() / name, provenance, {.entropy_coded = entropy_coded});
    for (const Trace& trace : traces) writer.append(trace);
    writer.finish();
    return folder_.path() / name / "shard-00000.h5";
  }
  // Opening the file and reading all of it.
  static void read_all(const std::filesystem::path& path) {
    const auto shard = TraceShard::open(path);
    for (size_t i = 0; i < shard->size(); ++i) {
      shard->trace(i);
      shard->hidden_states(i);
    }
  }
  // That no bit of the shard can change without an error that names it.
  static void expect_every_flip_is_found(const std::filesystem::path& path) {
    const std::string contents = core::read_file(path);
    const core::FileDescriptor file(::open(path.c_str(), O_WRONLY));
    for (size_t byte = 0; byte < contents.size(); ++byte) {
      for (int bit = 0; bit < 8; ++bit) {
        const auto flipped = static_cast<char>(contents[byte] ^ (1 << bit));
        ASSERT_EQ(::pwrite(file.get(), &flipped, 1, static_cast<off_t>(byte)), 1);
        EXPECT_THAT(error_of([&] { read_all(path); }), HasSubstr("shard-00000.h5"))
            << "byte " << byte << " bit " << bit;
      }
      ASSERT_EQ(::pwrite(file.get(), &contents[byte], 1, static_cast<off_t>(byte)), 1);
    }
    EXPECT_EQ(error_of([&] { read_all(path); }), "");
  }
  std::filesystem::path damaged(const std::string& contents) {
    const auto path = folder_.path() / "damaged.h5";
    std::ofstream(path, std::ios::binary) << contents;
    return path;
  }
  TemporaryFolder folder_{TemporaryFolder::memory()};
};

TEST_F(TraceShardTest, GivesBackWhatWasWrittenInTheOrderOfKeys) {
  for (const int64_t vocab : {50, 70000}) {
    auto provenance = sample_provenance("topk:4", vocab);
    provenance.targets.set_keep({3, 11});
    auto traces = sample_traces(21, provenance);
    const auto shard = TraceShard::open(write(traces, provenance, std::to_string(vocab)));
    EXPECT_EQ(shard->provenance().to_json(), provenance.to_json());
    ASSERT_EQ(shard->size(), traces.size());
    std::ranges::sort(traces, {}, [](const Trace& trace) { return trace.document.key; });
    uint64_t prompt = 0, completion = 0;
    for (size_t i = 0; i < traces.size(); ++i) {
      expect_equal(shard->trace(i), traces[i]);
      EXPECT_EQ(shard->key(i), traces[i].document.key);
      EXPECT_EQ(shard->completion_length(i), traces[i].document.completion_length());
      prompt += traces[i].document.prompt().size();
      completion += traces[i].document.completion().size();
    }
    EXPECT_EQ(shard->prompt_tokens(), prompt);
    EXPECT_EQ(shard->completion_tokens(), completion);
    shard->verify_hdf5();
  }
}

TEST_F(TraceShardTest, KeepsFullDistributionsToHalfPrecision) {
  const auto provenance = sample_provenance("full");
  const auto traces = sample_traces(3, provenance);
  const auto shard = TraceShard::open(write(traces, provenance));
  for (size_t i = 0; i < traces.size(); ++i) {
    const Trace actual = shard->trace(i);
    ASSERT_EQ(actual.targets.ids, traces[i].targets.ids);
    for (size_t j = 0; j < actual.targets.weights.size(); ++j) {
      EXPECT_NEAR(actual.targets.weights[j] / traces[i].targets.weights[j], 1, 0.008);
    }
  }
}

TEST_F(TraceShardTest, HoldsDocumentsWithoutACompletion) {
  const auto provenance = sample_provenance();
  Trace trace;
  trace.document.key = {"a", 0};
  trace.document.tokens = {1, 2, 3};
  trace.document.prompt_length = 3;
  const auto shard = TraceShard::open(write({trace}, provenance));
  expect_equal(shard->trace(0), trace);
}

TEST_F(TraceShardTest, DetectsEverySingleFlippedBit) {
  const auto provenance = sample_provenance("topk:2");
  expect_every_flip_is_found(write(sample_traces(3, provenance, 3), provenance));
}

TEST_F(TraceShardTest, DetectsEverySingleFlippedBitOfCodedTokensToo) {
  const auto provenance = sample_provenance("threshold:0.2");
  const auto path = write(sample_traces(3, provenance, 3), provenance, "set", true);
  EXPECT_EQ(TraceShard::open(path)->bytes(trace_format::kTokens), 0u);
  expect_every_flip_is_found(path);
}

TEST_F(TraceShardTest, DetectsEverySingleFlippedBitOfHiddenStatesToo) {
  const auto provenance = with_hidden_states(sample_provenance("topk:2"), HiddenType::kFp8);
  expect_every_flip_is_found(write(sample_traces(3, provenance, 3), provenance));
}

TEST_F(TraceShardTest, GivesBackHiddenStatesAsTheyWereWritten) {
  for (const auto type : {HiddenType::kBf16, HiddenType::kFp8}) {
    const auto provenance = with_hidden_states(sample_provenance(), type, 131);
    auto traces = sample_traces(9, provenance);
    traces[4].document.tokens.resize(static_cast<size_t>(traces[4].document.prompt_length));
    traces[4].targets.clear();
    traces[4].hidden_states.clear();
    const auto shard = TraceShard::open(write(traces, provenance, std::string(to_string(type))));
    shard->verify_hdf5();
    EXPECT_EQ(shard->provenance().hidden_states, provenance.hidden_states);
    std::ranges::sort(traces, {}, [](const Trace& trace) { return trace.document.key; });
    for (size_t i = 0; i < traces.size(); ++i) {
      expect_equal(shard->trace(i), traces[i]);
      EXPECT_TRUE(shard->trace(i).hidden_states.empty());
      EXPECT_EQ(hidden_states_of(*shard, i), traces[i].hidden_states);
    }
  }
}

TEST_F(TraceShardTest, SaysThatItHoldsHiddenStatesOnlyWhereItDoes) {
  const auto provenance = sample_provenance();
  const std::string without = core::read_file(write(sample_traces(3, provenance), provenance, "without"));
  EXPECT_EQ(without[trace_format::kVersionAt], 1);
  const size_t end = trace_format::kRegionsAt + 16 * trace_format::kHiddenOffsets;
  EXPECT_EQ(without.substr(end, trace_format::kUserBlockBytes - end),
            std::string(trace_format::kUserBlockBytes - end, '\0'));
  EXPECT_EQ(without.find("hidden"), std::string::npos);
  EXPECT_TRUE(TraceShard::open(folder_.path() / "without/shard-00000.h5")->hidden_states(0).empty());
  const auto more = with_hidden_states(provenance);
  EXPECT_EQ(core::read_file(write(sample_traces(3, more), more, "with"))[trace_format::kVersionAt], 2);
}

TEST_F(TraceShardTest, ReadsADocumentWhoseHiddenStatesAreDamagedAndNamesItWhenTheseAreRead) {
  const auto provenance = with_hidden_states(sample_provenance());
  const auto path = write(sample_traces(8, provenance), provenance);
  const std::string contents = core::read_file(path);
  const auto shard = TraceShard::open(path);
  for (size_t i = 0; i < shard->size(); ++i) {
    const auto states = hidden_states_of(*shard, i);
    std::string copy = contents;
    copy[contents.find(std::string_view(reinterpret_cast<const char*>(states.data()), states.size()))] ^= 4;
    const auto reopened = TraceShard::open(damaged(copy));
    for (size_t j = 0; j < reopened->size(); ++j) {
      expect_equal(reopened->trace(j), shard->trace(j));
      const std::string error = error_of([&] { reopened->hidden_states(j); });
      EXPECT_THAT(error,
                  j == i ? HasSubstr("damaged.h5, document " + std::to_string(i) + " (prompt '") : HasSubstr(""));
      EXPECT_EQ(error.empty(), j != i);
    }
  }
}

TEST_F(TraceShardTest, NamesTheDocumentWhoseDataOrRowIsDamaged) {
  const auto provenance = sample_provenance();
  const auto path = write(sample_traces(8, provenance), provenance);
  const std::string contents = core::read_file(path);
  const auto shard = TraceShard::open(path);
  for (size_t i = 0; i < shard->size(); ++i) {
    const auto payload = shard->payload(i);
    const std::string_view needle(reinterpret_cast<const char*>(payload.data()), payload.size());
    std::string copy = contents;
    copy[contents.find(needle)] ^= 4;
    const auto file = damaged(copy);
    EXPECT_THAT(error_of([&] { read_all(file); }),
                HasSubstr("damaged.h5, document " + std::to_string(i) + " (prompt '" + shard->key(i).prompt_id));
    EXPECT_EQ(error_of([&] {
                const auto reopened = TraceShard::open(file);
                for (size_t j = 0; j < reopened->size(); ++j) {
                  if (j != i) reopened->trace(j);
                }
              }),
              "");
  }
  for (size_t i = 0; i < shard->size(); ++i) {
    const uint64_t seed = shard->document(i).seed;
    std::string copy = contents;
    copy[contents.find(std::string_view(reinterpret_cast<const char*>(&seed), 8))] ^= 1;
    const auto file = damaged(copy);
    EXPECT_THAT(error_of([&] { read_all(file); }), HasSubstr("(document " + std::to_string(i) + ")"));
  }
}

TEST_F(TraceShardTest, RefusesFilesCutAtAnyLength) {
  const auto provenance = sample_provenance("topk:2");
  const auto path = write(sample_traces(3, provenance, 3), provenance);
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
  std::filesystem::resize_file(path, size + 1);
  EXPECT_THAT(error_of([&] { read_all(path); }), HasSubstr("the file was cut or added to"));
  for (int64_t cut = size - 1; cut >= 0; cut -= 3) {
    std::filesystem::resize_file(path, cut);
    EXPECT_THAT(error_of([&] { read_all(path); }),
                AnyOf(HasSubstr("not a trace shard"), HasSubstr("the file was cut or added to")))
        << cut;
  }
}

// What `write_sample_traces` of version 0.1.0 wrote for threshold:0.05, 300 ids and 12 documents; its targets are
// compared in parity.h5py_parity.
TEST_F(TraceShardTest, ReadsShardsWhoseCodecHoldsNoTokens) {
  const auto shard = TraceShard::open(DISTILL_TEST_DATA "/sets-version-1.h5");
  shard->verify_hdf5();
  EXPECT_FALSE(shard->codec().holds_tokens());
  ASSERT_EQ(shard->size(), 12u);
  for (size_t i = 0; i < shard->size(); ++i) {
    const TraceKey key = shard->key(i);
    const Trace trace = shard->trace(i), expected = sample_trace(key.prompt_id, key.sample, shard->provenance(), 40);
    EXPECT_EQ(trace.document.tokens, expected.document.tokens);
    EXPECT_EQ(shard->document(i).tokens, expected.document.tokens);
    EXPECT_EQ(trace.targets.positions(), static_cast<size_t>(trace.document.completion_length()));
    EXPECT_EQ(shard->codec().sizes(trace, shard->payload(i)).tokens, 0);
  }
}

TEST_F(TraceShardTest, RefusesOtherFilesAndVersions) {
  const auto other = damaged(std::string(4096, 'x'));
  EXPECT_THAT(error_of([&] { TraceShard::open(other); }), HasSubstr("damaged.h5: not a trace shard"));
  EXPECT_THAT(error_of([&] { TraceShard::open(folder_.path() / "absent.h5"); }), HasSubstr("absent.h5"));
  const auto provenance = sample_provenance();
  std::string contents = core::read_file(write(sample_traces(2, provenance), provenance));
  contents[trace_format::kVersionAt] = 9;
  std::fill_n(contents.begin() + trace_format::kBlockCrcAt, 4, '\0');
  const uint32_t crc = core::crc32c(std::as_bytes(std::span(contents)).first(trace_format::kUserBlockBytes));
  std::memcpy(contents.data() + trace_format::kBlockCrcAt, &crc, sizeof crc);
  const auto newer = damaged(contents);
  EXPECT_THAT(error_of([&] { TraceShard::open(newer); }),
              HasSubstr("format version 9; this version of distill reads 1 and 2"));
}

}  // namespace
}  // namespace distill::data
