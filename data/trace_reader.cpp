#include "data/trace_reader.h"

#include <algorithm>

#include "core/error.h"
#include "data/trace_shard.h"

namespace distill::data {

namespace fs = std::filesystem;

std::vector<fs::path> shard_files(const fs::path& path) {
  core::check(fs::exists(path), "{}: no such file or directory", path.string());
  if (!fs::is_directory(path)) return {path};
  std::vector<fs::path> files;
  bool journal = false;
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.path().extension() == ".h5") files.push_back(entry.path());
    journal |= entry.path().extension() == ".journal";
  }
  core::check(!files.empty(), "{}: no trace shards (*.h5) there{}", path.string(),
              journal ? ", only the journal of a generation that has not finished: run it again to go on" : "");
  std::ranges::sort(files);
  return files;
}

TraceReader TraceReader::open(const fs::path& path) {
  TraceReader reader;
  for (const fs::path& file : shard_files(path)) {
    auto shard = TraceShard::open(file);
    if (!reader.shards_.empty()) {
      const TraceShard& first = *reader.shards_.front();
      if (const std::string difference = first.provenance().difference(shard->provenance()); !difference.empty()) {
        core::fail("{} and {} were made with different settings and don't mix: {}", first.path().string(),
                   file.string(), difference);
      }
    }
    reader.offsets_.push_back(reader.offsets_.back() + shard->size());
    reader.shards_.push_back(std::move(shard));
  }
  return reader;
}

const TraceProvenance& TraceReader::provenance() const {
  return shards_.front()->provenance();
}

void TraceReader::require(const std::string& tokenizer_fingerprint, int64_t vocab_size) const {
  const TraceProvenance& made = provenance();
  const std::string where = shards_.front()->path().string();
  core::check(
      made.tokenizer == tokenizer_fingerprint,
      "{}: the traces were made with another tokenizer (SHA-256 {} against {}); take a student with the teacher's "
      "tokenizer",
      where, made.tokenizer, tokenizer_fingerprint);
  core::check(
      made.vocab_size <= vocab_size,
      "{}: the teacher's vocabulary of {} does not fit into the student's of {}; its config needs a larger vocab_size",
      where, made.vocab_size, vocab_size);
}

uint64_t TraceReader::prompt_tokens() const {
  uint64_t sum = 0;
  for (const auto& shard : shards_) sum += shard->prompt_tokens();
  return sum;
}

uint64_t TraceReader::completion_tokens() const {
  uint64_t sum = 0;
  for (const auto& shard : shards_) sum += shard->completion_tokens();
  return sum;
}

std::pair<const TraceShard&, size_t> TraceReader::locate(size_t index) const {
  core::check(index < size(), "document {} of {}", index, size());
  const auto after = std::ranges::upper_bound(offsets_, index);
  const auto shard = static_cast<size_t>(after - offsets_.begin()) - 1;
  return {*shards_[shard], index - offsets_[shard]};
}

TraceSource::Lengths TraceReader::lengths(size_t index) const {
  const auto [shard, local] = locate(index);
  return {shard.prompt_length(local), shard.completion_length(local)};
}

std::string TraceReader::prompt_id(size_t index) const {
  const auto [shard, local] = locate(index);
  return std::string(shard.prompt_id(local));
}

TraceKey TraceReader::key(size_t index) const {
  const auto [shard, local] = locate(index);
  return shard.key(local);
}

Trace TraceReader::read(size_t index) const {
  const auto [shard, local] = locate(index);
  return shard.trace(local);
}

TraceDocument TraceReader::read_document(size_t index) const {
  const auto [shard, local] = locate(index);
  return shard.document(local);
}

std::span<const std::byte> TraceReader::hidden_states(size_t index) const {
  const auto [shard, local] = locate(index);
  return shard.hidden_states(local);
}

std::optional<Fidelity> TraceReader::fidelity() const {
  std::optional<Fidelity> all;
  for (const auto& shard : shards_) merge(all, shard->fidelity());
  return all;
}

double TraceReader::divergence_excess() const {
  const std::optional<Fidelity> measured = fidelity();
  return measured ? measured->divergence() : 0;
}

}  // namespace distill::data
