// Layout of the trace shard and of its journal, shared by reader and writer. docs/trace-format.md describes both for
// programs in other languages.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/digest.h"

namespace distill::data::trace_format {

inline constexpr std::string_view kFormatName = "distill-trace-shard";
inline constexpr uint32_t kVersion = 1;
inline constexpr uint32_t kHiddenStatesVersion = 2;  // of shards that hold hidden states; the others stay at 1

// A shard is an HDF5 file behind a user block of kUserBlockBytes, which says where each dataset's bytes lie and carries
// the checksum of everything that no document's own checksum covers.
inline constexpr size_t kUserBlockBytes = 512;
inline constexpr std::array<char, 8> kMagic{'D', 'S', 'T', 'L', 'S', 'H', 'R', 'D'};
inline constexpr size_t kVersionAt = 8;        // u32
inline constexpr size_t kBlockCrcAt = 12;      // u32, CRC32C of the user block with this field zero
inline constexpr size_t kFileSizeAt = 16;      // u64
inline constexpr size_t kStructureCrcAt = 24;  // u32, CRC32C of the file after the user block without the bulk (kBulk)
inline constexpr size_t kRegionsAt = 32;       // {u64 offset, u64 bytes} of each dataset, in the order of Dataset

// Every dataset is one-dimensional and contiguous.
enum Dataset : size_t {
  kTokens,           // u16 or u32 [tokens], u16 if the vocabulary has at most 65,536 entries
  kPayload,          // u8 [payload bytes], the target distributions of each document, encoded
  kProvenance,       // u8, JSON
  kCodec,            // u8, JSON: name, version and parameters of the payload's codec
  kModel,            // u8, what the codec shares between documents; may be empty
  kPromptIds,        // u8, UTF-8
  kPromptIdOffsets,  // u64 [documents + 1] into prompt_ids
  kSample,           // u32 [documents]
  kPromptLength,     // u32 [documents], in tokens
  kTokenOffsets,     // u64 [documents + 1] into tokens, in elements
  kPayloadOffsets,   // u64 [documents + 1] into payload
  kFinishReason,     // u8 [documents]
  kVerdict,          // u8 [documents]
  kLogProbability,   // f64 [documents]
  kSeed,             // u64 [documents]
  kCrc32c,           // u32 [documents]
  kFidelity,         // u8, JSON: how well the targets stand for whole distributions; empty if not measured
  // In shards of kHiddenStatesVersion only:
  kHiddenOffsets,  // u64 [documents + 1] into hidden
  kHiddenCrc32c,   // u32 [documents], that of the document's record, continued over its hidden states
  kHidden,         // u8 [hidden bytes], the hidden states of each document, encoded
  kDatasets,
};
inline constexpr size_t datasets_of(uint32_t version) {
  return version == kHiddenStatesVersion ? size_t{kDatasets} : size_t{kHiddenOffsets};
}
// Verified document by document; everything else when a shard is opened.
inline constexpr std::array kBulk{kTokens, kPayload, kHidden};
inline constexpr std::array<std::string_view, kDatasets> kDatasetNames{
    "tokens",
    "payload",
    "provenance",
    "codec",
    "model",
    "documents/prompt_ids",
    "documents/prompt_id_offsets",
    "documents/sample",
    "documents/prompt_length",
    "documents/token_offsets",
    "documents/payload_offsets",
    "documents/finish_reason",
    "documents/verdict",
    "documents/log_probability",
    "documents/seed",
    "documents/crc32c",
    "fidelity",
    "documents/hidden_offsets",
    "documents/hidden_crc32c",
    "hidden",
};
static_assert(kRegionsAt + kDatasets * 16 <= kUserBlockBytes);

// Where the datasets of kBulk lie in a file, apart from each other.
using Bulk = std::array<std::span<const std::byte>, kBulk.size()>;
// What belongs at kStructureCrcAt.
inline uint32_t structure_crc(std::span<const std::byte> file, Bulk bulk) {
  std::ranges::sort(bulk, {}, [](const auto& region) { return region.data(); });
  uint32_t crc = 0;
  size_t at = kUserBlockBytes;
  for (const auto& region : bulk) {
    if (region.empty()) continue;
    const auto begin = static_cast<size_t>(region.data() - file.data());
    crc = core::crc32c(file.subspan(at, begin - at), crc);
    at = begin + region.size();
  }
  return core::crc32c(file.subspan(at), crc);
}

inline constexpr size_t kMaxPromptIdBytes = 4096;
inline constexpr size_t kMaxTokensPerDocument = size_t{1} << 24;

// A record (one document as bytes; docs/trace-format.md, "Document record") starts with this many bytes of numbers.
inline constexpr size_t kRecordHeadBytes = 36;

// A journal is a sequence of frames {u32 magic, u32 body bytes, u32 CRC32C of the two before and the body, body}. The
// first body is the provenance as JSON, each following one a document record.
inline constexpr uint32_t kFrameMagic = 0x4C4A5444;  // "DTJL"
inline constexpr size_t kFrameHeadBytes = 12;
inline constexpr size_t kMaxFrameBytes = size_t{1} << 31;

}  // namespace distill::data::trace_format
