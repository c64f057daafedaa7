#include "data/trace_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "data/trace_shard.h"
#include "data/trace_writer.h"
#include "tests/data/expect_error.h"
#include "tests/data/sample_traces.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class TraceReaderTest : public testing::Test {
 protected:
  void write(const std::string& name, const TraceProvenance& provenance, const std::vector<Trace>& traces,
             uint64_t documents_per_shard = UINT64_MAX) {
    TraceWriter writer(directory(), provenance,
                       {.name = name, .documents_per_shard = documents_per_shard, .entropy_coded = false});
    for (const Trace& trace : traces) writer.append(trace);
    writer.finish();
  }
  std::filesystem::path directory() const { return folder_.path() / "set"; }
  TemporaryFolder folder_{TemporaryFolder::memory()};
  TraceProvenance provenance_ = sample_provenance();
};

TEST_F(TraceReaderTest, NumbersDocumentsThroughAllShards) {
  const auto traces = sample_traces(11, provenance_);
  write("shard", provenance_, traces, 4);
  const TraceReader reader = TraceReader::open(directory());
  ASSERT_EQ(reader.shards().size(), 3);
  ASSERT_EQ(reader.size(), 11);
  uint64_t prompt = 0, completion = 0;
  for (size_t i = 0; i < reader.size(); ++i) {
    const Trace trace = reader.read(i);
    const Trace original = sample_trace(trace.document.key.prompt_id, trace.document.key.sample, provenance_);
    EXPECT_EQ(trace.document.tokens, original.document.tokens);
    EXPECT_EQ(trace.targets.weights, original.targets.weights);
    EXPECT_EQ(reader.read_document(i).tokens, original.document.tokens);
    EXPECT_EQ(reader.prompt_id(i), original.document.key.prompt_id);
    EXPECT_EQ(reader.lengths(i).prompt, original.document.prompt_length);
    EXPECT_EQ(reader.lengths(i).completion, original.document.completion_length());
    prompt += original.document.prompt().size();
    completion += original.document.completion().size();
  }
  EXPECT_EQ(reader.prompt_tokens(), prompt);
  EXPECT_EQ(reader.completion_tokens(), completion);
  EXPECT_THAT(error_of([&] { reader.read(11); }), HasSubstr("document 11 of 11"));
  EXPECT_EQ(TraceReader::open(reader.shards()[1]->path()).size(), 4);
}

TEST_F(TraceReaderTest, ReadsSeveralDocumentsSideBySide) {
  write("shard", provenance_, sample_traces(30, provenance_), 12);
  const auto reader = TraceReader::open(directory());
  const std::vector<size_t> indices{29, 3, 3, 17, 0, 12};
  for (const size_t threads : {1, 4, 100}) {
    const auto traces = reader.read(indices, threads);
    ASSERT_EQ(traces.size(), indices.size());
    for (size_t i = 0; i < indices.size(); ++i) {
      const Trace alone = reader.read(indices[i]);
      EXPECT_EQ(traces[i].document.key, alone.document.key);
      EXPECT_EQ(traces[i].targets.ids, alone.targets.ids);
      EXPECT_EQ(traces[i].targets.weights, alone.targets.weights);
    }
  }
  EXPECT_THAT(error_of([&] { reader.read(std::vector<size_t>{1, 30, 2}, 3); }), HasSubstr("document 30 of 30"));
}

TEST_F(TraceReaderTest, SaysWhatIsMissing) {
  EXPECT_THAT(error_of([&] { TraceReader::open(directory()); }), HasSubstr("no such file or directory"));
  std::filesystem::create_directory(directory());
  EXPECT_THAT(error_of([&] { TraceReader::open(directory()); }), HasSubstr("no trace shards (*.h5) there"));
  {
    TraceWriter writer(directory(), provenance_);
    writer.append(sample_trace("a", 0, provenance_));
  }
  EXPECT_THAT(error_of([&] { TraceReader::open(directory()); }), HasSubstr("run it again to go on"));
}

TEST_F(TraceReaderTest, RefusesShardsThatDontBelongTogether) {
  write("first", provenance_, {sample_trace("a", 0, provenance_)});
  const std::filesystem::path second = directory() / "second-00000.h5";
  const auto error_with = [&](const auto& change) {
    TraceProvenance other = provenance_;
    change(other);
    TraceWriter writer(folder_.path() / "other", other, {.name = "second"});
    writer.append(sample_trace("b", 0, other));
    writer.finish();
    std::filesystem::rename(folder_.path() / "other" / "second-00000.h5", second);
    std::string error = error_of([&] { TraceReader::open(directory()); });
    std::filesystem::remove(second);
    return error;
  };
  using P = TraceProvenance;
  const std::string five(64, '5');
  EXPECT_THAT(error_with([&](P& other) { other.weights = five; }),
              AllOf(HasSubstr("first-00000.h5"), HasSubstr("second-00000.h5"), HasSubstr("fingerprints weights: \"111"),
                    HasSubstr("against \"555")));
  EXPECT_THAT(error_with([&](P& other) { other.config = five; }), HasSubstr("fingerprints config"));
  EXPECT_THAT(error_with([&](P& other) { other.tokenizer = five; }), HasSubstr("fingerprints tokenizer"));
  EXPECT_THAT(error_with([&](P& other) { other.chat_template = five; }), HasSubstr("fingerprints chat_template"));
  EXPECT_THAT(error_with([&](P& other) { other.vocab_size = 51; }), HasSubstr("vocab_size: 50 against 51"));
  EXPECT_THAT(error_with([&](P& other) { other.sampling.temperature = 0.5; }), HasSubstr("sampling temperature"));
  EXPECT_THAT(error_with([&](P& other) { other.targets = TargetSpec::parse("topk:3"); }),
              HasSubstr("\"topk:4\" against \"topk:3\""));
  // The same teacher elsewhere, asked by another version.
  EXPECT_EQ(error_with([&](P& other) { other.teacher = "moved.gguf", other.version = "0.2.0"; }), "");
}

TEST_F(TraceReaderTest, RequiresTheTokenizerAndVocabularyOfTheStudent) {
  write("shard", provenance_, {sample_trace("a", 0, provenance_)});
  const TraceReader reader = TraceReader::open(directory());
  reader.require(provenance_.tokenizer, 50);
  reader.require(provenance_.tokenizer, 64);
  EXPECT_THAT(error_of([&] { reader.require(std::string(64, '7'), 50); }),
              AllOf(HasSubstr("another tokenizer"), HasSubstr(std::string(64, '3')), HasSubstr(std::string(64, '7'))));
  EXPECT_THAT(error_of([&] { reader.require(provenance_.tokenizer, 49); }), HasSubstr("vocabulary of 50 does not fit"));
}

}  // namespace
}  // namespace distill::data
