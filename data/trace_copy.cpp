#include "data/trace_copy.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "core/error.h"
#include "core/philox.h"
#include "data/trace_reader.h"
#include "data/trace_shard.h"
#include "data/trace_writer.h"

namespace distill::data {
namespace {

// Refuses a provenance that does not mix with `first`.
void check_mixes(const TraceProvenance& first, const TraceProvenance& other, const std::filesystem::path& where) {
  if (const std::string difference = first.difference(other); !difference.empty()) {
    core::fail("{}: made with other settings than what is copied before it: {}", where.string(), difference);
  }
}

Trace with_hidden_states(Trace&& trace, std::span<const std::byte> states) {
  trace.hidden_states.assign(states.begin(), states.end());
  return std::move(trace);
}

// The keys of the documents to copy.
std::set<TraceKey> choose(const std::vector<TraceReader>& readers, const TraceCopyOptions& options) {
  struct Candidate {
    int32_t length;
    uint32_t sample;
    uint64_t completion;  // hash
  };
  std::map<std::string, std::vector<Candidate>> by_prompt;
  for (const TraceReader& reader : readers) {
    for (size_t i = 0; i < reader.size(); ++i) {
      const TraceDocument document = reader.read_document(i);
      if (options.wanted && !options.wanted(document)) continue;
      const auto bytes = std::as_bytes(document.completion());
      const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      by_prompt[document.key.prompt_id].push_back(
          {document.completion_length(), document.key.sample, core::stream_id(text, 0)});
    }
  }
  std::set<TraceKey> chosen;
  for (auto& [prompt, candidates] : by_prompt) {
    std::ranges::sort(candidates, {}, [](const Candidate& one) { return std::pair(one.length, one.sample); });
    std::set<uint64_t> seen;
    uint64_t count = 0;
    for (const Candidate& candidate : candidates) {
      if (count == options.per_prompt) break;
      if (options.unique && !seen.insert(candidate.completion).second) continue;
      chosen.insert({prompt, candidate.sample});
      ++count;
    }
  }
  return chosen;
}

}  // namespace

TraceCopySummary copy_traces(std::span<const std::filesystem::path> sources, const std::filesystem::path& directory,
                             const TraceCopyOptions& options) {
  core::check(!sources.empty(), "no traces to copy");
  std::vector<TraceReader> readers;
  for (const auto& source : sources) {
    readers.push_back(TraceReader::open(source));
    check_mixes(readers.front().provenance(), readers.back().provenance(), source);
  }
  TraceWriterOptions writing{.documents_per_shard = options.documents_per_shard};
  for (const TraceReader& reader : readers) merge(writing.fidelity, reader.fidelity());
  TraceWriter writer(directory, readers.front().provenance(), writing);
  TraceCopySummary summary;
  const bool all = !options.wanted && !options.unique && options.per_prompt == UINT64_MAX;
  const std::set<TraceKey> chosen = all ? std::set<TraceKey>() : choose(readers, options);
  std::set<TraceKey> seen;
  for (size_t s = 0; s < readers.size(); ++s) {
    for (size_t i = 0; i < readers[s].size(); ++i) {
      const TraceKey key = readers[s].key(i);
      core::check(seen.insert(key).second, "{}: prompt '{}' sample {} is in what is copied before it too",
                  sources[s].string(), key.prompt_id, key.sample);
      if (!all && !chosen.contains(key)) {
        ++summary.left_out;
        continue;
      }
      ++summary.copied;
      if (writer.contains(key)) continue;
      writer.append(with_hidden_states(readers[s].read(i), readers[s].hidden_states(i)));
    }
  }
  core::check(writer.documents() == summary.copied, "{}: holds {} documents that are not copied; choose another folder",
              directory.string(), writer.documents() - summary.copied);
  writer.finish();
  return summary;
}

TraceCopySummary repair_traces(const std::filesystem::path& source, const std::filesystem::path& directory) {
  TraceCopySummary summary;
  std::optional<TraceProvenance> provenance;
  std::optional<TraceWriter> writer;
  std::set<TraceKey> seen;
  for (const auto& file : shard_files(source)) {
    std::shared_ptr<const TraceShard> shard;
    try {
      shard = TraceShard::open_damaged(file);
    } catch (const core::Error& error) {
      summary.damage.push_back(fmt::format("{} (nothing of it can be read)", error.what()));
      continue;
    }
    if (!writer) {
      provenance = shard->provenance();
      writer.emplace(directory, *provenance);
    }
    check_mixes(*provenance, shard->provenance(), file);
    for (size_t i = 0; i < shard->size(); ++i) {
      std::optional<Trace> trace;
      try {
        trace = with_hidden_states(shard->trace(i), shard->hidden_states(i));
      } catch (const core::Error& error) {
        summary.damage.push_back(error.what());
        continue;
      }
      if (!seen.insert(trace->document.key).second) continue;
      ++summary.copied;
      if (!writer->contains(trace->document.key)) writer->append(*trace);
    }
  }
  if (!writer) core::fail("{}: no shard can be repaired: {}", source.string(), summary.damage.front());
  writer->finish();
  return summary;
}

}  // namespace distill::data
