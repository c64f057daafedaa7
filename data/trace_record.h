// One document as bytes: the body of a journal record, and what a document's checksum in a shard covers.
// Layout in docs/trace-format.md, "Document record".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "data/trace.h"

namespace distill::data {

// How wide a token id is stored: 2 bytes if the vocabulary allows, else 4.
size_t token_bytes(int64_t vocab_size);

// Throws Error naming the defect of a document that no shard can hold: ids outside the vocabulary, no prompt, a prompt
// id that is empty, too long or not UTF-8, a log-probability that is not finite.
void check_document(const TraceDocument& document, int64_t vocab_size);

// The record of a valid document and its encoded targets.
std::vector<std::byte> encode_record(const TraceDocument& document, std::span<const std::byte> payload,
                                     int64_t vocab_size);

struct TraceRecord {
  TraceDocument document;
  std::span<const std::byte> payload;  // into the bytes given
};
// Throws Error if the bytes are not a record of a valid document.
TraceRecord decode_record(std::span<const std::byte> body, int64_t vocab_size);

// A record in the pieces a shard stores it in.
struct RecordPieces {
  std::string_view prompt_id;
  uint32_t sample = 0;
  uint32_t prompt_length = 0;
  uint8_t finish_reason = 0;
  uint8_t verdict = 0;
  double log_probability = 0;
  uint64_t seed = 0;
  uint64_t token_count = 0;
  std::span<const std::byte> tokens;  // as stored, token_bytes each; nothing if the payload holds them
  std::span<const std::byte> payload;
};
// CRC32C of the record that the pieces make up.
uint32_t record_crc(const RecordPieces& pieces);
// The document before it is checked, its tokens 0 if the payload holds them. Throws Error if the pieces of an untrusted
// shard give it no prompt or too many tokens.
TraceDocument outline_document(const RecordPieces& pieces, int64_t vocab_size);
// The document. Throws Error as check_document() does, on the pieces of an untrusted shard.
TraceDocument assemble_document(const RecordPieces& pieces, int64_t vocab_size);

// Token ids as stored.
void append_tokens(std::vector<std::byte>& out, std::span<const int32_t> tokens, size_t token_bytes);
std::vector<int32_t> load_tokens(std::span<const std::byte> bytes, size_t token_bytes);

}  // namespace distill::data
