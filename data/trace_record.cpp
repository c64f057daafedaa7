#include "data/trace_record.h"

#include <array>
#include <cmath>

#include "core/digest.h"
#include "core/error.h"
#include "core/text_file.h"
#include "data/little_endian.h"
#include "data/trace_format.h"

namespace distill::data {
namespace {

// u32 bytes of the prompt id, u32 sample, u32 prompt length, u32 tokens, u8 finish reason, u8 verdict, u16 zero,
// f64 log-probability, u64 seed.
std::array<std::byte, trace_format::kRecordHeadBytes> encode_head(const RecordPieces& pieces) {
  std::array<std::byte, trace_format::kRecordHeadBytes> head{};
  const auto put = [&](size_t at, auto value) { std::memcpy(head.data() + at, &value, sizeof value); };
  put(0, static_cast<uint32_t>(pieces.prompt_id.size()));
  put(4, pieces.sample);
  put(8, pieces.prompt_length);
  put(12, static_cast<uint32_t>(pieces.token_count));
  put(16, pieces.finish_reason);
  put(17, pieces.verdict);
  put(20, pieces.log_probability);
  put(28, pieces.seed);
  return head;
}

RecordPieces pieces_of(const TraceDocument& document) {
  return {.prompt_id = document.key.prompt_id,
          .sample = document.key.sample,
          .prompt_length = static_cast<uint32_t>(document.prompt_length),
          .finish_reason = static_cast<uint8_t>(document.finish_reason),
          .verdict = static_cast<uint8_t>(document.verdict),
          .log_probability = document.log_probability,
          .seed = document.seed,
          .token_count = document.tokens.size(),
          .tokens = {},
          .payload = {}};
}

}  // namespace

size_t token_bytes(int64_t vocab_size) {
  return vocab_size <= 65536 ? 2 : 4;
}

void check_document(const TraceDocument& document, int64_t vocab_size) {
  const std::string& id = document.key.prompt_id;
  core::check(!id.empty() && id.size() <= trace_format::kMaxPromptIdBytes, "a prompt id of {} bytes; 1 to {} fit",
              id.size(), trace_format::kMaxPromptIdBytes);
  core::check(core::find_invalid_utf8(id) == std::string_view::npos, "the prompt id is not valid UTF-8");
  core::check(document.tokens.size() <= trace_format::kMaxTokensPerDocument, "prompt '{}': {} tokens; at most {} fit",
              id, document.tokens.size(), trace_format::kMaxTokensPerDocument);
  core::check(document.prompt_length >= 1 && static_cast<size_t>(document.prompt_length) <= document.tokens.size(),
              "prompt '{}': the prompt's length {} is not between 1 and the document's {} tokens", id,
              document.prompt_length, document.tokens.size());
  for (size_t i = 0; i < document.tokens.size(); ++i) {
    core::check(document.tokens[i] >= 0 && document.tokens[i] < vocab_size,
                "prompt '{}': token {} is id {}, outside the vocabulary of {}", id, i, document.tokens[i], vocab_size);
  }
  core::check(document.finish_reason <= FinishReason::kLength, "prompt '{}': unknown finish reason {}", id,
              static_cast<int>(document.finish_reason));
  core::check(document.verdict <= Verdict::kIncorrect, "prompt '{}': unknown verdict {}", id,
              static_cast<int>(document.verdict));
  core::check(std::isfinite(document.log_probability), "prompt '{}': the log-probability is {}", id,
              document.log_probability);
}

void append_tokens(std::vector<std::byte>& out, std::span<const int32_t> tokens, size_t width) {
  if (width == 4) return append(out, tokens);
  for (const int32_t token : tokens) append_value(out, static_cast<uint16_t>(token));
}

std::vector<int32_t> load_tokens(std::span<const std::byte> bytes, size_t width) {
  std::vector<int32_t> tokens(bytes.size() / width);
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = width == 2 ? load<uint16_t>(bytes.data(), i) : static_cast<int32_t>(load<uint32_t>(bytes.data(), i));
  }
  return tokens;
}

std::vector<std::byte> encode_record(const TraceDocument& document, std::span<const std::byte> payload,
                                     int64_t vocab_size) {
  const size_t width = token_bytes(vocab_size);
  std::vector<std::byte> body;
  body.reserve(trace_format::kRecordHeadBytes + document.key.prompt_id.size() + document.tokens.size() * width +
               payload.size());
  const auto head = encode_head(pieces_of(document));
  append(body, std::span<const std::byte>(head));
  append(body, std::span<const char>(document.key.prompt_id));
  append_tokens(body, document.tokens, width);
  append(body, payload);
  return body;
}

TraceRecord decode_record(std::span<const std::byte> body, int64_t vocab_size) {
  constexpr size_t kHead = trace_format::kRecordHeadBytes;
  core::check(body.size() >= kHead, "a record of {} bytes is too short", body.size());
  const std::byte* head = body.data();
  const uint64_t id_bytes = load<uint32_t>(head), width = token_bytes(vocab_size);
  const uint64_t tokens = load<uint32_t>(head + 12), tokens_bytes = tokens * width;
  core::check(id_bytes <= body.size() - kHead && tokens_bytes <= body.size() - kHead - id_bytes,
              "a record of {} bytes cannot hold a prompt id of {} and tokens of {} bytes", body.size(), id_bytes,
              tokens_bytes);
  const RecordPieces pieces{.prompt_id = {reinterpret_cast<const char*>(head) + kHead, id_bytes},
                            .sample = load<uint32_t>(head + 4),
                            .prompt_length = load<uint32_t>(head + 8),
                            .finish_reason = load<uint8_t>(head + 16),
                            .verdict = load<uint8_t>(head + 17),
                            .log_probability = load<double>(head + 20),
                            .seed = load<uint64_t>(head + 28),
                            .token_count = tokens,
                            .tokens = body.subspan(kHead + id_bytes, tokens_bytes),
                            .payload = body.subspan(kHead + id_bytes + tokens_bytes)};
  return {assemble_document(pieces, vocab_size), pieces.payload};
}

uint32_t record_crc(const RecordPieces& pieces) {
  uint32_t crc = core::crc32c(encode_head(pieces));
  crc = core::crc32c(std::as_bytes(std::span(pieces.prompt_id)), crc);
  crc = core::crc32c(pieces.tokens, crc);
  return core::crc32c(pieces.payload, crc);
}

TraceDocument outline_document(const RecordPieces& pieces, int64_t vocab_size) {
  core::check(pieces.token_count <= trace_format::kMaxTokensPerDocument && pieces.prompt_length >= 1 &&
                  pieces.prompt_length <= pieces.token_count,
              "prompt '{}': a prompt of {} tokens in a document of {}", pieces.prompt_id, pieces.prompt_length,
              pieces.token_count);
  return {.key = {std::string(pieces.prompt_id), pieces.sample},
          .tokens = pieces.tokens.empty() ? std::vector<int32_t>(pieces.token_count)
                                          : load_tokens(pieces.tokens, token_bytes(vocab_size)),
          .prompt_length = static_cast<int32_t>(pieces.prompt_length),
          .finish_reason = static_cast<FinishReason>(pieces.finish_reason),
          .verdict = static_cast<Verdict>(pieces.verdict),
          .log_probability = pieces.log_probability,
          .seed = pieces.seed};
}

TraceDocument assemble_document(const RecordPieces& pieces, int64_t vocab_size) {
  TraceDocument document = outline_document(pieces, vocab_size);
  check_document(document, vocab_size);
  return document;
}

}  // namespace distill::data
