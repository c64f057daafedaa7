#include "data/trace_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <numeric>
#include <optional>
#include <set>
#include <vector>

#include "core/error.h"
#include "core/file_descriptor.h"
#include "core/log.h"
#include "data/set_codec.h"
#include "data/target_codec.h"
#include "data/trace_journal.h"
#include "data/trace_record.h"
#include "data/trace_shard.h"
#include "data/trace_shard_builder.h"

namespace distill::data {
namespace {

namespace fs = std::filesystem;

// Held as long as the descriptor is open; the system lets go of it when the process ends, however it ends.
core::FileDescriptor lock_writer(const fs::path& directory, const std::string& name) {
  const fs::path path = directory / (name + ".lock");
  core::FileDescriptor fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (!fd) core::fail_errno("create", path);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) core::fail_errno("lock", path);
    char pid[24] = {};
    const ssize_t length = ::pread(fd.get(), pid, sizeof pid - 1, 0);
    core::fail("{}: another process{} is writing '{}' shards there; wait for it or choose another directory",
               directory.string(), length > 0 ? fmt::format(" ({})", pid) : "", name);
  }
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(fd.get(), 0) != 0 || ::pwrite(fd.get(), pid.data(), pid.size(), 0) < 0)
    core::fail_errno("write", path);
  return fd;
}

// The number in "<name>-00012<extension>", if that is what the file is called.
std::optional<uint32_t> number_of(const fs::path& file, const std::string& name, std::string_view extension) {
  const std::string text = file.filename().string(), prefix = name + "-";
  if (!text.starts_with(prefix) || !text.ends_with(extension)) return {};
  uint32_t number = 0;
  const char* first = text.data() + prefix.size();
  const char* last = text.data() + text.size() - extension.size();
  const auto [end, error] = std::from_chars(first, last, number);
  if (error != std::errc() || end != last) return {};
  return number;
}

std::vector<fs::path> sorted_files(const fs::path& directory) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(directory)) files.push_back(entry.path());
  std::ranges::sort(files);
  return files;
}

}  // namespace

struct TraceWriter::State {
  fs::path directory;
  TraceProvenance provenance;
  TraceWriterOptions options;
  core::FileDescriptor lock;
  std::unique_ptr<const TargetCodec> journal_codec;
  std::set<TraceKey> keys;
  uint32_t number = 0;  // of the shard that the journal becomes
  std::optional<TraceJournal> journal;
  size_t appended = 0;  // since the last sync
  bool finished = false;

  fs::path path(std::string_view extension) const {
    return directory / fmt::format("{}-{:05}{}", options.name, number, extension);
  }

  bool full() const {
    return journal && (journal->bytes() >= options.journal_bytes_per_shard ||
                       journal->entries().size() >= options.documents_per_shard);
  }
  void resume();
  void resume_journal();
  void seal();
};

TraceWriter::TraceWriter(const fs::path& directory, const TraceProvenance& provenance,
                         const TraceWriterOptions& options)
    : state_(std::make_unique<State>()) {
  core::check(!options.name.empty() && options.name.find('/') == std::string::npos, "'{}' cannot name a shard",
              options.name);
  std::error_code error;
  fs::create_directories(directory, error);
  core::check(!error, "cannot create folder {}: {}", directory.string(), error.message());
  state_->directory = directory;
  state_->provenance = provenance;
  state_->options = options;
  state_->journal_codec = TargetCodec::lossless(provenance);
  state_->lock = lock_writer(directory, options.name);
  state_->resume();
}

TraceWriter::~TraceWriter() {
  if (state_->finished) return;
  try {
    flush();
  } catch (const std::exception& error) {
    core::log::error("{}", error.what());
  }
}

void TraceWriter::State::resume() {
  for (const fs::path& file : sorted_files(directory)) {
    // A seal that was interrupted leaves its temporary file; its documents are still in the journal.
    if (file.filename().string().starts_with(options.name + "-") &&
        file.filename().string().find(".tmp-") != std::string::npos) {
      fs::remove(file);
      continue;
    }
    if (file.extension() != ".h5") continue;
    const auto shard = TraceShard::open(file);
    if (const std::string difference = shard->provenance().difference(provenance); !difference.empty()) {
      core::fail("{}: holds traces that were made with other settings ({}); choose another directory", file.string(),
                 difference);
    }
    for (size_t i = 0; i < shard->size(); ++i) keys.insert(shard->key(i));
    if (const auto found = number_of(file, options.name, ".h5")) number = std::max(number, *found + 1);
  }
  resume_journal();
}

void TraceWriter::State::resume_journal() {
  for (const fs::path& file : sorted_files(directory)) {
    const auto found = number_of(file, options.name, ".journal");
    if (!found) continue;
    core::check(!journal, "{}: a second journal beside {}; one of them does not belong here", file.string(),
                journal ? journal->path().string() : "");
    TraceJournal candidate(file, provenance);
    const auto sealed = [&](const TraceJournal::Entry& entry) { return keys.contains(entry.key); };
    if (std::ranges::all_of(candidate.entries(), sealed)) {
      candidate.remove();  // its shard was sealed, or nothing was ever added
      continue;
    }
    core::check(std::ranges::none_of(candidate.entries(), sealed), "{}: some of its documents are in a shard already",
                file.string());
    for (const auto& entry : candidate.entries()) {
      core::check(keys.insert(entry.key).second, "{}: prompt '{}' sample {} appears twice", file.string(),
                  entry.key.prompt_id, entry.key.sample);
    }
    core::check(*found >= number, "{}: its shard exists, but with other documents", file.string());
    number = *found;
    journal.emplace(std::move(candidate));
  }
}

bool TraceWriter::contains(const TraceKey& key) const {
  return state_->keys.contains(key);
}

size_t TraceWriter::documents() const {
  return state_->keys.size();
}

void TraceWriter::append(const Trace& trace) {
  State& state = *state_;
  core::check(!state.finished, "{}: the writer is finished", state.directory.string());
  const TraceKey& key = trace.document.key;
  core::check(!contains(key), "{}: prompt '{}' sample {} is already there", state.directory.string(), key.prompt_id,
              key.sample);
  check_document(trace.document, state.provenance.vocab_size);
  std::vector<std::byte> payload;
  core::with_context(fmt::format("prompt '{}' sample {}", key.prompt_id, key.sample),
                     [&] { payload = encode_journal_payload(*state.journal_codec, state.provenance, trace); });
  if (state.full()) state.seal();  // an earlier run ended just before it
  if (!state.journal) state.journal.emplace(state.path(".journal"), state.provenance);
  state.keys.insert(key);
  ++state.appended;
  state.journal->append(key, encode_record(trace.document, payload, state.provenance.vocab_size));
  if (state.appended >= state.options.documents_per_sync) flush();
  if (state.full()) {
    flush();
    state.seal();
  }
}

void TraceWriter::flush() {
  if (!state_->journal || state_->appended == 0) return;
  state_->journal->write();
  state_->journal->sync();
  state_->appended = 0;
}

void TraceWriter::finish() {
  if (state_->finished) return;
  flush();
  if (state_->journal) state_->seal();
  state_->finished = true;
}

// The journal's documents in the order of their keys become a shard; only when that is on disk is the journal removed.
void TraceWriter::State::seal() {
  const auto file = journal->map();
  std::vector<TraceJournal::Entry> entries = journal->entries();
  std::ranges::sort(entries, {}, &TraceJournal::Entry::key);
  // The documents one after the other with their targets; `pass` is called for each.
  const auto for_each = [&](auto&& pass) {
    for (const auto& entry : entries) {
      TraceRecord record = decode_record(TraceJournal::record(*file, entry), provenance.vocab_size);
      pass(record, decode_journal_payload(*journal_codec, provenance, record.document, record.payload));
    }
  };
  std::unique_ptr<const TargetCodec> codec = TargetCodec::lossless(provenance);
  if (options.entropy_coded && provenance.targets.mode != TargetMode::kFull) {
    SetCodecTrainer trainer(provenance);
    for_each([&](const TraceRecord& record, const JournalPayload& payload) {
      trainer.count_ids(record.document, payload.targets);
    });
    for_each([&](const TraceRecord& record, const JournalPayload& payload) {
      trainer.count_symbols(record.document, payload.targets);
    });
    codec = trainer.finish();
  }
  TraceShardBuilder builder(provenance, *codec);
  std::optional<Fidelity> fidelity = options.fidelity;
  std::vector<std::byte> encoded;
  for_each([&](const TraceRecord& record, const JournalPayload& payload) {
    if (payload.targets.fidelity) {
      if (!fidelity) fidelity.emplace();
      fidelity->add(*payload.targets.fidelity);
    }
    encoded.clear();
    codec->encode(record.document, payload.targets, encoded);
    builder.add(record.document, encoded, payload.hidden_states);
  });
  if (fidelity) {
    fidelity->finish();
    builder.set_fidelity(*fidelity);
  }
  builder.write(path(".h5"));
  journal->remove();
  journal.reset();
  ++number;
}

}  // namespace distill::data
