#include "data/token_alignment.h"

#include <algorithm>

#include "core/error.h"
#include "data/utf8.h"

namespace distill::data {
namespace {

constexpr int32_t kNone = -1;

// Byte positions at which the tokens end. An end token takes one position behind the text.
std::vector<size_t> token_ends(std::span<const int32_t> tokens, const EndedTokenizer& side, bool ended) {
  std::vector<size_t> ends;
  size_t at = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    at += ended && i + 1 == tokens.size() ? 1 : side.tokenizer->token_bytes(tokens[i]).size();
    ends.push_back(at);
  }
  return ends;
}

}  // namespace

// A target that is being put together.
struct TokenAlignment::Row {
  std::vector<std::pair<int32_t, float>> entries;  // ids may repeat
  float uncovered = 0;
  std::unordered_map<std::string, std::optional<int32_t>> first_tokens;  // already looked up, of this document

  void add(std::optional<int32_t> id, float weight) {
    if (id) {
      entries.emplace_back(*id, weight);
    } else {
      uncovered += weight;
    }
  }
  // Appends it to `targets` and is empty again.
  void finish(SparseTargets& targets) {
    std::ranges::sort(entries);
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0 && entries[i].first == entries[i - 1].first) {
        targets.weights.back() += entries[i].second;
      } else {
        targets.ids.push_back(entries[i].first);
        targets.weights.push_back(entries[i].second);
      }
    }
    targets.offsets.push_back(static_cast<int64_t>(targets.ids.size()));
    targets.uncovered.push_back(uncovered);
    entries.clear();
    uncovered = 0;
  }
};

TokenAlignment::TokenAlignment(EndedTokenizer teacher, EndedTokenizer student)
    : teacher_(std::move(teacher)), student_(std::move(student)) {
  core::check(!student_.ends.empty(), "the student's files name no token that ends an answer (eos_token_id)");
  const Tokenizer& pieces = *student_.tokenizer;
  for (int32_t id = 0; id < pieces.vocab_size(); ++id) {
    if (pieces.is_special(id)) continue;
    const std::string_view bytes = pieces.token_bytes(id);
    student_pieces_.emplace(bytes, id);
    longest_piece_ = std::max(longest_piece_, bytes.size());
  }
  const int32_t count = teacher_.tokenizer->vocab_size();
  counterparts_.reserve(static_cast<size_t>(count));
  for (int32_t id = 0; id < count; ++id) counterparts_.push_back(counterpart(id).value_or(kNone));
}

bool TokenAlignment::ends(int32_t teacher_token) const {
  return std::ranges::find(teacher_.ends, teacher_token) != teacher_.ends.end();
}

// Of a token after other text; an end has none.
std::string_view TokenAlignment::teacher_bytes(int32_t id) const {
  return ends(id) ? std::string_view() : teacher_.tokenizer->token_bytes(id);
}

std::optional<int32_t> TokenAlignment::first_token(std::string_view bytes) const {
  if (bytes.empty()) return {};
  if (utf8::valid_prefix(bytes) == bytes.size()) {
    const auto tokens = student_.tokenizer->encode(bytes, /*add_special_tokens=*/false);
    return tokens.empty() ? std::nullopt : std::optional(tokens.front());
  }
  // A part of a character, which no text is: the longest piece it begins with.
  for (size_t length = std::min(bytes.size(), longest_piece_); length > 0; --length) {
    const auto piece = student_pieces_.find(bytes.substr(0, length));
    if (piece != student_pieces_.end()) return piece->second;
  }
  return {};
}

std::optional<int32_t> TokenAlignment::counterpart(int32_t teacher_token) const {
  if (ends(teacher_token)) return student_.ends.front();
  const std::string_view bytes = teacher_.tokenizer->token_bytes(teacher_token);
  if (!teacher_.tokenizer->is_special(teacher_token)) return first_token(bytes);
  const auto same = student_.tokenizer->token_to_id(bytes);
  return same && student_.tokenizer->is_special(*same) ? same : std::nullopt;
}

TokenAlignment::Text TokenAlignment::text(std::span<const int32_t> completion) const {
  Text text{.bytes = {}, .ended = !completion.empty() && ends(completion.back())};
  for (const int32_t id : completion.first(completion.size() - (text.ended ? 1 : 0))) {
    text.bytes += teacher_.tokenizer->token_bytes(id);
  }
  if (!text.ended) text.bytes.resize(text.bytes.size() - utf8::incomplete_suffix(text.bytes));
  return text;
}

std::vector<int32_t> TokenAlignment::encode(const Text& text) const {
  auto tokens = student_.tokenizer->encode(text.bytes, /*add_special_tokens=*/false);
  if (text.ended) tokens.push_back(student_.ends.front());
  return tokens;
}

void TokenAlignment::carry_text(std::span<const int32_t> student_tokens, SparseTargets& carried) {
  for (const int32_t id : student_tokens) {
    carried.ids.push_back(id);
    carried.weights.push_back(1);
    carried.offsets.push_back(static_cast<int64_t>(carried.ids.size()));
    carried.uncovered.push_back(0);
  }
}

void TokenAlignment::carry(std::span<const int32_t> completion, const SparseTargets& theirs,
                           std::span<const int32_t> student_tokens, SparseTargets& carried) const {
  core::check(theirs.positions() == completion.size(), "{} targets for {} tokens", theirs.positions(),
              completion.size());
  const Text written = text(completion);
  std::string bytes;
  for (size_t i = 0; i + (written.ended ? 1 : 0) < student_tokens.size(); ++i) {
    bytes += student_.tokenizer->token_bytes(student_tokens[i]);
  }
  if (bytes != written.bytes) return carry_text(student_tokens, carried);

  const auto teacher_ends = token_ends(completion, teacher_, written.ended);
  const auto student_ends = token_ends(student_tokens, student_, written.ended);
  Row row;
  size_t theirs_at = 0;  // the first of the teacher's tokens that ends behind where the student's begins
  size_t begin = 0;
  for (size_t i = 0; i < student_tokens.size(); begin = student_ends[i], ++i) {
    while (theirs_at < teacher_ends.size() && teacher_ends[theirs_at] <= begin) ++theirs_at;
    const size_t their_begin = theirs_at == 0 ? 0 : teacher_ends[theirs_at - 1];
    if (theirs_at < teacher_ends.size() && their_begin == begin) {
      carry_row(theirs_at, completion, teacher_ends, theirs, student_tokens[i], student_ends[i], row);
    } else {
      row.add(student_tokens[i], 1);
    }
    row.finish(carried);
  }
}

// The target of a token of the student that begins with the teacher's token `first` and ends at `student_end`.
void TokenAlignment::carry_row(size_t first, std::span<const int32_t> completion, std::span<const size_t> teacher_ends,
                               const SparseTargets& theirs, int32_t student_token, size_t student_end, Row& row) const {
  std::string prefix;  // the teacher's tokens from `first` on
  float mass = 1;      // and their probability
  const auto first_of = [&](int32_t id) {
    std::string text = prefix + std::string(teacher_bytes(id));
    const auto [known, is_new] = row.first_tokens.try_emplace(std::move(text));
    if (is_new) known->second = first_token(known->first);
    return known->second;
  };
  const auto counterpart_of = [&](int32_t id) -> std::optional<int32_t> {
    // The teacher's head may have rows that stand for no token.
    if (static_cast<size_t>(id) >= counterparts_.size()) return {};
    // Special tokens end what was written before them, as an end does.
    if (!prefix.empty()) return first_of(id);
    return counterparts_[static_cast<size_t>(id)] == kNone ? std::nullopt
                                                           : std::optional(counterparts_[static_cast<size_t>(id)]);
  };
  for (size_t k = first; k < completion.size(); ++k) {
    const TargetDistribution target = theirs[k];
    row.uncovered += mass * target.uncovered;
    float written = 0;  // the weight of the token that was written
    for (size_t e = 0; e < target.ids.size(); ++e) {
      if (target.ids[e] == completion[k]) {
        written = target.weights[e];
      } else {
        row.add(counterpart_of(target.ids[e]), mass * target.weights[e]);
      }
    }
    mass *= written;
    if (teacher_ends[k] >= student_end || k + 1 == completion.size()) {
      if (mass > 0) row.add(student_token, mass);
      return;
    }
    if (mass == 0) return;
    prefix += teacher_bytes(completion[k]);
  }
}

}  // namespace distill::data
