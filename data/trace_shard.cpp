#include "data/trace_shard.h"

#include <algorithm>
#include <vector>

#include "core/digest.h"
#include "core/error.h"
#include "core/text_file.h"
#include "data/hdf5_handle.h"
#include "data/little_endian.h"

namespace distill::data {

namespace format = trace_format;

namespace {

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Columns have an entry per document, or one more: where each document begins, and the end.
struct Column {
  format::Dataset dataset;
  size_t width;  // bytes
  size_t more = 0;
};
constexpr std::array kColumns{Column{format::kPromptIdOffsets, 8, 1},
                              Column{format::kSample, 4},
                              Column{format::kPromptLength, 4},
                              Column{format::kTokenOffsets, 8, 1},
                              Column{format::kPayloadOffsets, 8, 1},
                              Column{format::kFinishReason, 1},
                              Column{format::kVerdict, 1},
                              Column{format::kLogProbability, 8},
                              Column{format::kSeed, 8},
                              Column{format::kCrc32c, 4},
                              Column{format::kHiddenOffsets, 8, 1},
                              Column{format::kHiddenCrc32c, 4}};

}  // namespace

std::shared_ptr<const TraceShard> TraceShard::open(const std::filesystem::path& path) {
  auto file = core::MappedFile::open(path);
  return core::with_context(path.string(), [&] {
    std::shared_ptr<TraceShard> shard(new TraceShard(std::move(file)));
    shard->find_regions(false);
    shard->verify_structure();
    shard->read_settings();
    shard->verify_table();
    return std::shared_ptr<const TraceShard>(std::move(shard));
  });
}

std::shared_ptr<const TraceShard> TraceShard::open_damaged(const std::filesystem::path& path) {
  auto file = core::MappedFile::open(path);
  return core::with_context(path.string(), [&] {
    std::shared_ptr<TraceShard> shard(new TraceShard(std::move(file)));
    shard->find_regions(true);
    shard->read_settings();
    return std::shared_ptr<const TraceShard>(std::move(shard));
  });
}

std::optional<Fidelity> TraceShard::fidelity() const {
  const auto stored = regions_[format::kFidelity];
  if (stored.empty()) return {};
  return core::with_context(path().string(), [&] { return Fidelity::from_json(core::parse_json(text_of(stored))); });
}

void TraceShard::read_settings() {
  provenance_ = TraceProvenance::from_json(core::parse_json(text_of(regions_[format::kProvenance])), "provenance");
  codec_ =
      TargetCodec::open(core::parse_json(text_of(regions_[format::kCodec])), regions_[format::kModel], provenance_);
  core::check(tokens_in_payload_ == codec_->holds_tokens(), "the codec keeps tokens in {}, but dataset tokens is {}",
              codec_->holds_tokens() ? "the payload" : "a dataset", tokens_in_payload_ ? "empty" : "not");
  core::check(tokens_in_payload_ || token_bytes_ == data::token_bytes(provenance_.vocab_size),
              "tokens of {} bytes with a vocabulary of {}", token_bytes_, provenance_.vocab_size);
  core::check(provenance_.hidden_states.has_value() == (version_ == format::kHiddenStatesVersion),
              "format version {}, but the provenance says {} of hidden states", version_,
              provenance_.hidden_states ? "something" : "nothing");
}

void TraceShard::find_regions(bool may_be_cut) {
  const auto bytes = file_->bytes();
  core::check(bytes.size() >= format::kUserBlockBytes &&
                  std::memcmp(bytes.data(), format::kMagic.data(), format::kMagic.size()) == 0,
              "not a trace shard: it does not begin as one");
  std::vector<std::byte> block(bytes.begin(), bytes.begin() + format::kUserBlockBytes);
  version_ = load<uint32_t>(block.data() + format::kVersionAt);
  const auto crc = load<uint32_t>(block.data() + format::kBlockCrcAt);
  std::fill_n(block.begin() + format::kBlockCrcAt, 4, std::byte{0});
  core::check(core::crc32c(block) == crc, "damaged: the user block's checksum does not match");
  core::check(version_ == format::kVersion || version_ == format::kHiddenStatesVersion,
              "format version {}; this version of distill reads {} and {}", version_, format::kVersion,
              format::kHiddenStatesVersion);
  const auto size = load<uint64_t>(block.data() + format::kFileSizeAt);
  core::check(size == bytes.size() || (may_be_cut && size > bytes.size()),
              "{} bytes long instead of {}: the file was cut or added to", bytes.size(), size);
  struct Place {
    uint64_t offset, bytes;
  };
  std::vector<Place> places;
  for (size_t i = 0; i < format::datasets_of(version_); ++i) {
    const auto place = load<Place>(block.data() + format::kRegionsAt, i);
    if (place.bytes == 0) continue;
    core::check(place.offset >= format::kUserBlockBytes && place.offset <= size && place.bytes <= size - place.offset,
                "dataset {} lies outside the file", format::kDatasetNames[i]);
    const size_t end = std::min(place.offset + place.bytes, bytes.size());
    regions_[i] = place.offset < end ? bytes.subspan(place.offset, end - place.offset) : bytes.first(0);
    places.push_back(place);
  }
  std::ranges::sort(places, {}, &Place::offset);
  for (size_t i = 1; i < places.size(); ++i) {
    core::check(places[i - 1].offset + places[i - 1].bytes <= places[i].offset, "two datasets overlap");
  }

  documents_ = regions_[format::kSample].size() / 4;
  core::check(documents_ > 0, "holds no documents: remove it to use the others of its set");
  for (const auto& [column, width, more] : kColumns) {
    if (column >= format::datasets_of(version_)) continue;
    core::check(regions_[column].size() == (documents_ + more) * width, "dataset {} has {} bytes for {} documents",
                format::kDatasetNames[column], regions_[column].size(), documents_);
  }
  const auto tokens = value<uint64_t>(format::kTokenOffsets, documents_);
  const auto bytes_of_tokens = load<Place>(block.data() + format::kRegionsAt, format::kTokens).bytes;
  tokens_in_payload_ = bytes_of_tokens == 0;
  token_bytes_ = tokens > 0 && bytes_of_tokens / tokens >= 4 ? 4 : 2;
}

// Everything but the user block (already verified) and the bulk.
void TraceShard::verify_structure() const {
  const auto bytes = file_->bytes();
  format::Bulk bulk;
  std::ranges::transform(format::kBulk, bulk.begin(), [&](format::Dataset dataset) { return regions_[dataset]; });
  // The search for the document reads everything.
  if (format::structure_crc(bytes, bulk) != load<uint32_t>(bytes.data() + format::kStructureCrcAt)) {
    core::fail("damaged: the checksum of the file's structure and document table does not match{}", damaged_document());
  }
}

// Which document's row the damage is in, as far as its own checksum tells.
std::string TraceShard::damaged_document() const {
  for (size_t i = 0; i < documents_; ++i) {
    if (!intact(i) || !hidden_states_intact(i)) return fmt::format(" (document {})", i);
  }
  return " (outside every document)";
}

uint64_t TraceShard::stored_tokens() const {
  const auto all = value<uint64_t>(format::kTokenOffsets, documents_);
  return tokens_in_payload_ ? all : regions_[format::kTokens].size() / token_bytes_;
}

bool TraceShard::intact(size_t index) const {
  const std::array<std::pair<format::Dataset, uint64_t>, 3> limits{
      std::pair{format::kPromptIdOffsets, regions_[format::kPromptIds].size()},
      std::pair{format::kTokenOffsets, stored_tokens()},
      std::pair{format::kPayloadOffsets, regions_[format::kPayload].size()}};
  for (const auto& [offsets, limit] : limits) {
    const auto begin = value<uint64_t>(offsets, index), end = value<uint64_t>(offsets, index + 1);
    if (begin > end || end > limit) return false;
  }
  if (pieces(index).token_count > format::kMaxTokensPerDocument) return false;  // of which the checksum has 32 bits
  return record_crc(pieces(index)) == value<uint32_t>(format::kCrc32c, index);
}

bool TraceShard::hidden_states_intact(size_t index) const {
  if (version_ != format::kHiddenStatesVersion) return true;
  const auto begin = value<uint64_t>(format::kHiddenOffsets, index);
  const auto end = value<uint64_t>(format::kHiddenOffsets, index + 1);
  if (begin > end || end > regions_[format::kHidden].size()) return false;
  const auto crc =
      core::crc32c(regions_[format::kHidden].subspan(begin, end - begin), value<uint32_t>(format::kCrc32c, index));
  return crc == value<uint32_t>(format::kHiddenCrc32c, index);
}

void TraceShard::verify_table() {
  const auto check_offsets = [&](format::Dataset offsets, size_t limit) {
    uint64_t previous = 0;
    for (size_t i = 0; i <= documents_; ++i) {
      const auto offset = value<uint64_t>(offsets, i);
      core::check(offset >= previous && offset <= limit && (i > 0 || offset == 0), "dataset {}: entry {} is {}",
                  format::kDatasetNames[offsets], i, offset);
      previous = offset;
    }
    core::check(previous == limit, "dataset {} ends at {} instead of {}", format::kDatasetNames[offsets], previous,
                limit);
  };
  check_offsets(format::kPromptIdOffsets, regions_[format::kPromptIds].size());
  check_offsets(format::kTokenOffsets, stored_tokens());
  core::check(regions_[format::kTokens].size() % token_bytes_ == 0, "half a token at the end of dataset tokens");
  check_offsets(format::kPayloadOffsets, regions_[format::kPayload].size());
  if (provenance_.hidden_states) check_offsets(format::kHiddenOffsets, regions_[format::kHidden].size());
  for (size_t i = 0; i < documents_; ++i) {
    const uint64_t tokens = value<uint64_t>(format::kTokenOffsets, i + 1) - value<uint64_t>(format::kTokenOffsets, i);
    const auto prompt = value<uint32_t>(format::kPromptLength, i);
    core::check(tokens <= format::kMaxTokensPerDocument && prompt >= 1 && prompt <= tokens,
                "document {}: a prompt of {} tokens in a document of {}", i, prompt, tokens);
    core::check(!prompt_id(i).empty() && prompt_id(i).size() <= format::kMaxPromptIdBytes,
                "document {}: a prompt id of {} bytes", i, prompt_id(i).size());
    core::check(value<uint8_t>(format::kFinishReason, i) <= 1 && value<uint8_t>(format::kVerdict, i) <= 2,
                "document {}: an unknown finish reason or verdict", i);
    if (i > 0) {
      const int order = prompt_id(i - 1).compare(prompt_id(i));
      core::check(
          order < 0 || (order == 0 && value<uint32_t>(format::kSample, i - 1) < value<uint32_t>(format::kSample, i)),
          "document {} is not in the order of keys", i);
    }
    prompt_tokens_ += prompt;
    completion_tokens_ += tokens - prompt;
  }
}

template <typename T>
T TraceShard::value(format::Dataset dataset, size_t index) const {
  return load<T>(regions_[dataset].data(), index);
}

std::string_view TraceShard::prompt_id(size_t index) const {
  const auto begin = value<uint64_t>(format::kPromptIdOffsets, index);
  return text_of(
      regions_[format::kPromptIds].subspan(begin, value<uint64_t>(format::kPromptIdOffsets, index + 1) - begin));
}

TraceKey TraceShard::key(size_t index) const {
  return {std::string(prompt_id(index)), value<uint32_t>(format::kSample, index)};
}

int32_t TraceShard::prompt_length(size_t index) const {
  return value<int32_t>(format::kPromptLength, index);
}

int32_t TraceShard::completion_length(size_t index) const {
  return static_cast<int32_t>(value<uint64_t>(format::kTokenOffsets, index + 1) -
                              value<uint64_t>(format::kTokenOffsets, index)) -
         prompt_length(index);
}

FinishReason TraceShard::finish_reason(size_t index) const {
  return static_cast<FinishReason>(value<uint8_t>(format::kFinishReason, index));
}

Verdict TraceShard::verdict(size_t index) const {
  return static_cast<Verdict>(value<uint8_t>(format::kVerdict, index));
}

RecordPieces TraceShard::pieces(size_t index) const {
  const auto tokens = value<uint64_t>(format::kTokenOffsets, index);
  const auto tokens_end = value<uint64_t>(format::kTokenOffsets, index + 1);
  const auto payload = value<uint64_t>(format::kPayloadOffsets, index);
  const auto payload_end = value<uint64_t>(format::kPayloadOffsets, index + 1);
  return {.prompt_id = prompt_id(index),
          .sample = value<uint32_t>(format::kSample, index),
          .prompt_length = value<uint32_t>(format::kPromptLength, index),
          .finish_reason = value<uint8_t>(format::kFinishReason, index),
          .verdict = value<uint8_t>(format::kVerdict, index),
          .log_probability = value<double>(format::kLogProbability, index),
          .seed = value<uint64_t>(format::kSeed, index),
          .token_count = tokens_end - tokens,
          .tokens = tokens_in_payload_ ? std::span<const std::byte>()
                                       : regions_[format::kTokens].subspan(tokens * token_bytes_,
                                                                           (tokens_end - tokens) * token_bytes_),
          .payload = regions_[format::kPayload].subspan(payload, payload_end - payload)};
}

std::string TraceShard::name_of(size_t index) const {
  if (const auto end = value<uint64_t>(format::kPromptIdOffsets, index + 1);
      value<uint64_t>(format::kPromptIdOffsets, index) > end || end > regions_[format::kPromptIds].size()) {
    return fmt::format("{}, document {}", path().string(), index);
  }
  return fmt::format("{}, document {} (prompt '{}', sample {})", path().string(), index, prompt_id(index),
                     value<uint32_t>(format::kSample, index));
}

RecordPieces TraceShard::verified_pieces(size_t index) const {
  if (!intact(index)) core::fail("{}: damaged: its checksum does not match", name_of(index));
  return pieces(index);
}

TraceDocument TraceShard::document(size_t index) const {
  const RecordPieces verified = verified_pieces(index);
  return core::with_context(name_of(index), [&] {
    TraceDocument document = outline_document(verified, provenance_.vocab_size);
    codec_->decode_tokens(document, verified.payload);
    check_document(document, provenance_.vocab_size);
    return document;
  });
}

std::span<const std::byte> TraceShard::payload(size_t index) const {
  return verified_pieces(index).payload;
}

Trace TraceShard::trace(size_t index) const {
  const RecordPieces verified = verified_pieces(index);
  return core::with_context(name_of(index), [&] {
    Trace trace{.document = outline_document(verified, provenance_.vocab_size), .targets = {}};
    codec_->decode(trace.document, verified.payload, trace.targets);
    check_document(trace.document, provenance_.vocab_size);
    return trace;
  });
}

std::span<const std::byte> TraceShard::hidden_states(size_t index) const {
  if (!provenance_.hidden_states) return {};
  core::check(hidden_states_intact(index), "{}: damaged: its hidden states' checksum does not match", name_of(index));
  const auto begin = value<uint64_t>(format::kHiddenOffsets, index);
  const auto states =
      regions_[format::kHidden].subspan(begin, value<uint64_t>(format::kHiddenOffsets, index + 1) - begin);
  core::check(states.size() == provenance_.hidden_bytes(completion_length(index)),
              "{}: {} bytes of hidden states for {} tokens", name_of(index), states.size(), completion_length(index));
  return states;
}

void TraceShard::verify_hdf5() const {
  const auto lock = lock_hdf5();
  const std::string name = path().string();
  const Hdf5Properties access(H5Pcreate(H5P_FILE_ACCESS), name, "open it");
  check_hdf5(H5Pset_file_locking(access.get(), false, true), name, "open it");
  const Hdf5File file(H5Fopen(name.c_str(), H5F_ACC_RDONLY, access.get()), name, "open it");
  for (size_t i = 0; i < format::datasets_of(version_); ++i) {
    const std::string title(format::kDatasetNames[i]), where = fmt::format("{}: dataset {}", name, title);
    const Hdf5Dataset dataset(H5Dopen2(file.get(), title.c_str(), H5P_DEFAULT), where, "open it");
    const Hdf5Type type(H5Dget_type(dataset.get()), where, "read its type");
    const Hdf5Space space(H5Dget_space(dataset.get()), where, "read its shape");
    const auto count =
        static_cast<uint64_t>(check_hdf5(H5Sget_simple_extent_npoints(space.get()), where, "read its shape"));
    core::check(count * H5Tget_size(type.get()) == regions_[i].size(),
                "{}: HDF5 finds {} elements of {} bytes, not {} bytes", where, count, H5Tget_size(type.get()),
                regions_[i].size());
    if (regions_[i].empty()) continue;
    const auto offset = static_cast<haddr_t>(regions_[i].data() - file_->bytes().data());
    core::check(H5Dget_offset(dataset.get()) == offset, "{}: HDF5 finds it at byte {}, not {}", where,
                H5Dget_offset(dataset.get()), offset);
  }
}

}  // namespace distill::data
