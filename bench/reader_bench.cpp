// What it costs to open a set of a thousand million tokens and to read batches from it in random order.
//   reader_bench SCRATCH [shards = 1000] [documents per shard = 5000] [tokens per document = 200]
// One shard is written and linked under as many names: the index is that of a set of that size, the disk holds one
// shard. Targets are threshold:0.04 of random logits over 32,000 ids; nearly all ids occur.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <ctime>
#include <exception>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "core/philox.h"
#include "core/text_file.h"
#include "data/batcher.h"
#include "data/target_encoder.h"
#include "data/trace_reader.h"
#include "data/trace_writer.h"

namespace distill::bench {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double cpu_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// MB of memory that is the process's own, without the pages of files that the system may drop.
double own_memory() {
  const std::string status = core::read_file("/proc/self/status");
  return std::stod(status.substr(status.find("RssAnon:") + 8)) / 1000;
}

void write_shard(const fs::path& folder, int64_t documents, int64_t tokens) {
  data::TraceProvenance provenance;
  provenance.teacher = "random";
  provenance.weights = provenance.config = provenance.tokenizer = std::string(64, '0');
  provenance.vocab_size = 32000;
  provenance.targets = data::TargetSpec::parse("threshold:0.04");
  core::Philox random(1, 0, 0);
  std::vector<float> logits(static_cast<size_t>(provenance.vocab_size));
  std::vector<data::SparseTargets> positions(4000);  // of which the documents are made up
  for (auto& position : positions) {
    for (float& logit : logits) logit = static_cast<float>(4 * random.next_normal());
    data::encode_target(logits, provenance.targets, random, position);
  }
  data::TraceWriter writer(folder, provenance, {.journal_bytes_per_shard = uint64_t{1} << 34});
  for (int64_t i = 0; i < documents; ++i) {
    data::Trace trace;
    trace.document.key.prompt_id = fmt::format("prompt-{:08}", i);
    trace.document.tokens = {0};
    trace.document.prompt_length = 1;
    for (int64_t j = 1; j < tokens; ++j) {
      const auto& position = positions[random.next_below(static_cast<uint32_t>(positions.size()))];
      trace.targets.append(position);
      trace.document.tokens.push_back(position.ids.front());
    }
    writer.append(trace);
  }
  writer.finish();
}

void run(const fs::path& folder, int64_t shards, int64_t documents, int64_t tokens) {
  write_shard(folder, documents, tokens);
  for (int64_t i = 1; i < shards; ++i) {
    const fs::path name = folder / fmt::format("shard-{:05}.h5", i);
    if (!fs::exists(name)) fs::create_hard_link(folder / "shard-00000.h5", name);
  }
  const double before = own_memory();
  auto start = Clock::now();
  double cpu = cpu_seconds();
  const auto reader = std::make_shared<const data::TraceReader>(data::TraceReader::open(folder));
  const double open_seconds = since(start), open_memory = own_memory() - before, open_cpu = cpu_seconds() - cpu;
  start = Clock::now();
  cpu = cpu_seconds();
  data::Batcher batcher(reader, {.max_tokens = 16384});
  const double index_seconds = since(start), index_memory = own_memory() - before, index_cpu = cpu_seconds() - cpu;
  // Tokens per second, and per second of processor time.
  const auto read = [&](int batches) {
    const auto begin = Clock::now();
    const double cpu_begin = cpu_seconds();
    double tokens = 0;
    for (int i = 0; i < batches; ++i) tokens += static_cast<double>(batcher.next().tokens.numel());
    return std::pair(tokens / since(begin), tokens / (cpu_seconds() - cpu_begin));
  };
  const auto first = read(100), later = read(300);  // at first every shard's tables have to be made
  const nlohmann::json json{{"tokens", reader->completion_tokens() + reader->prompt_tokens()},
                            {"documents", reader->size()},
                            {"shards", shards},
                            {"open_seconds", open_seconds},
                            {"open_cpu_seconds", open_cpu},
                            {"open_megabytes", open_memory},
                            {"batcher_seconds", index_seconds},
                            {"batcher_cpu_seconds", index_cpu},
                            {"batcher_megabytes", index_memory},
                            {"after_reading_megabytes", own_memory() - before},
                            {"tokens_per_cpu_second_at_first", first.second},
                            {"tokens_per_second", later.first},
                            {"tokens_per_cpu_second", later.second}};
  fmt::print("{} tokens in {} documents of {} shards\n", json["tokens"].dump(), reader->size(), shards);
  fmt::print("open     {:>7.2f} s ({:.2f} s of processor time) {:>8.1f} MB\n", open_seconds, open_cpu, open_memory);
  fmt::print("index    {:>7.2f} s ({:.2f} s of processor time) {:>8.1f} MB\n", index_seconds, index_cpu, index_memory);
  fmt::print(
      "batches  {:>7.2f} M tokens/s, {:.2f} M per second of processor time ({:.2f} M at first), {:.1f} MB\n\n{}\n",
      later.first / 1e6, later.second / 1e6, first.second / 1e6, json["after_reading_megabytes"].get<double>(),
      json.dump());
}

}  // namespace
}  // namespace distill::bench

int main(int argc, char** argv) {
  if (argc < 2 || argc > 5) {
    std::fprintf(stderr, "usage: reader_bench SCRATCH [shards] [documents per shard] [tokens per document]\n");
    return 2;
  }
  try {
    const auto number = [&](int index, int64_t otherwise) {
      return argc > index ? std::stoll(argv[index]) : otherwise;
    };
    distill::bench::run(argv[1], number(2, 1000), number(3, 5000), number(4, 200));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
