// Fuzzes trace shards as files. The first byte of the input says which of the checksums are made right before the rest
// is opened as a shard: a fuzzer would get past none of them.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "core/digest.h"
#include "core/error.h"
#include "data/trace_record.h"
#include "data/trace_shard.h"
#include "tests/fuzz/input_file.h"

namespace {

using namespace distill::data;
namespace format = trace_format;

class Sealer {
 public:
  explicit Sealer(std::vector<std::byte>& file) : file_(file) {
    const auto version = get<uint32_t>(format::kVersionAt);
    for (size_t i = 0; i < format::datasets_of(version); ++i) {
      const auto offset = get<uint64_t>(format::kRegionsAt + 16 * i),
                 bytes = get<uint64_t>(format::kRegionsAt + 16 * i + 8);
      if (offset < format::kUserBlockBytes || offset > file.size() || bytes > file.size() - offset) continue;
      regions_[i] = {offset, bytes};
    }
  }

  void documents() {
    const size_t count = regions_[format::kCrc32c].bytes / 4;
    for (size_t i = 0; i < std::min<size_t>(count, 16); ++i) {
      const auto id = rows(format::kPromptIds, format::kPromptIdOffsets, i, 1);
      const auto tokens = rows(format::kTokens, format::kTokenOffsets, i, 2);
      const auto payload = rows(format::kPayload, format::kPayloadOffsets, i, 1);
      const RecordPieces pieces{
          .prompt_id = {reinterpret_cast<const char*>(id.data()), id.size()},
          .sample = column<uint32_t>(format::kSample, i),
          .prompt_length = column<uint32_t>(format::kPromptLength, i),
          .finish_reason = column<uint8_t>(format::kFinishReason, i),
          .verdict = column<uint8_t>(format::kVerdict, i),
          .log_probability = column<double>(format::kLogProbability, i),
          .seed = column<uint64_t>(format::kSeed, i),
          .token_count = column<uint64_t>(format::kTokenOffsets, i + 1) - column<uint64_t>(format::kTokenOffsets, i),
          .tokens = tokens,
          .payload = payload};
      const uint32_t crc = record_crc(pieces);
      put(regions_[format::kCrc32c].offset + 4 * i, crc);
      if (4 * i + 4 > regions_[format::kHiddenCrc32c].bytes) continue;
      put(regions_[format::kHiddenCrc32c].offset + 4 * i,
          distill::core::crc32c(rows(format::kHidden, format::kHiddenOffsets, i, 1), crc));
    }
  }

  void structure() {
    std::array<Region, format::kBulk.size()> bulk;
    std::ranges::transform(format::kBulk, bulk.begin(), [&](format::Dataset dataset) { return regions_[dataset]; });
    std::ranges::sort(bulk, {}, &Region::offset);
    uint32_t crc = 0;
    size_t at = format::kUserBlockBytes;
    for (const Region& region : bulk) {
      if (region.bytes == 0 || region.offset < at) continue;
      crc = distill::core::crc32c(std::span(file_).subspan(at, region.offset - at), crc);
      at = region.offset + region.bytes;
    }
    put(format::kStructureCrcAt, distill::core::crc32c(std::span(file_).subspan(at), crc));
  }

  void user_block() {
    std::memcpy(file_.data(), format::kMagic.data(), format::kMagic.size());
    if (get<uint32_t>(format::kVersionAt) != format::kHiddenStatesVersion) put(format::kVersionAt, format::kVersion);
    put(format::kFileSizeAt, static_cast<uint64_t>(file_.size()));
    put(format::kBlockCrcAt, uint32_t{0});
    put(format::kBlockCrcAt, distill::core::crc32c(std::span(file_).first(format::kUserBlockBytes)));
  }

 private:
  struct Region {
    size_t offset = 0, bytes = 0;
  };
  template <typename T>
  T get(size_t at) const {
    T value;
    std::memcpy(&value, file_.data() + at, sizeof value);
    return value;
  }
  template <typename T>
  void put(size_t at, T value) {
    std::memcpy(file_.data() + at, &value, sizeof value);
  }
  template <typename T>
  T column(format::Dataset dataset, size_t row) const {
    return (row + 1) * sizeof(T) <= regions_[dataset].bytes ? get<T>(regions_[dataset].offset + row * sizeof(T)) : T{};
  }
  std::span<const std::byte> rows(format::Dataset data, format::Dataset offsets, size_t row, size_t width) const {
    const auto begin = column<uint64_t>(offsets, row), end = column<uint64_t>(offsets, row + 1);
    const Region& region = regions_[data];
    if (begin > end || end > region.bytes / width) return {};
    return std::span(file_).subspan(region.offset + begin * width, (end - begin) * width);
  }

  std::vector<std::byte>& file_;
  std::array<Region, format::kDatasets> regions_{};
};

void read_hidden_states(const TraceShard& shard, size_t index) {
  const auto stored = shard.hidden_states(index);
  if (stored.size() != shard.provenance().hidden_bytes(shard.completion_length(index))) __builtin_trap();
  if (stored.empty()) return;
  const HiddenStatesSpec& spec = *shard.provenance().hidden_states;
  std::vector<float> values(static_cast<size_t>(spec.width));
  for (size_t i = 0; i < spec.layers.size(); ++i) spec.decode(stored.first(spec.position_bytes()), i, values);
}

// Everything a reader may do with a shard.
void read(const TraceShard& shard, bool damaged) {
  for (size_t i = 0; i < shard.size(); ++i) {
    try {
      const Trace trace = shard.trace(i);
      if (trace.targets.positions() != static_cast<size_t>(trace.document.completion_length())) __builtin_trap();
      if (!damaged && shard.key(i) != trace.document.key) __builtin_trap();
      read_hidden_states(shard, i);
    } catch (const distill::core::Error&) {
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data + 1, size - 1));
  std::vector<std::byte> file(bytes.begin(), bytes.end());
  if (file.size() >= format::kUserBlockBytes) {
    Sealer sealer(file);
    if ((data[0] & 1) != 0) sealer.documents();
    if ((data[0] & 2) != 0) sealer.structure();
    if ((data[0] & 4) != 0) sealer.user_block();
  }
  const distill::InputFile input(reinterpret_cast<const uint8_t*>(file.data()), file.size());
  try {
    read(*TraceShard::open(input.path()), false);
  } catch (const distill::core::Error&) {
  }
  try {
    read(*TraceShard::open_damaged(input.path()), true);
  } catch (const distill::core::Error&) {
  }
  return 0;
}
