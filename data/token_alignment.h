// One text under two tokenizers: what a teacher thought of its next tokens, said of a student's tokens.
//
// Where a token of both begins at the same byte, the teacher's distribution q over its next token is carried over: a
// token t goes to the first of the student's tokens for t's bytes. Many to one, so masses add up. Along the text that
// was written the next distribution is known as well: while the teacher's tokens so far are a piece of the student's
// token there, t's share is split further by the next distribution (the chain rule),
//   r(s) = sum over t != t_k of q_k(t) [s is first in prefix + t], + q_k(t_k) (the same for k + 1, prefix + t_k)
// until the student's token is complete. r is linear in each q_k, so estimates of the q that are unbiased and
// independent of each other stay unbiased. Where a token of the student begins inside one of the teacher's, its target
// is the token that was written: given the text, the teacher is certain. For text that the teacher drew, a loss that
// is linear in r is then in expectation the one of whole texts.
// Not exact: off the written text, a token t of the teacher may begin a longer token of the student; its mass goes to
// the student's token for t alone. Compare TRL's GOLD trainer, which scales the whole first distribution of a group by
// the later tokens' probabilities and sorts what has no counterpart (ULD, Boizard et al. 2024, arXiv 2402.12030), and
// Minixhofer et al. 2025 (ALM, arXiv 2503.20083), who compare the likelihoods of the aligned pieces alone.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/target_distribution.h"
#include "data/tokenizer.h"

namespace distill::data {

// One side of the alignment.
struct EndedTokenizer {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::vector<int32_t> ends;  // tokens that end an answer; the first is what the other side's become
};

// Immutable after construction and safe to use from several threads at once.
class TokenAlignment {
 public:
  TokenAlignment(EndedTokenizer teacher, EndedTokenizer student);

  // The text of a completion of the teacher's, and whether one of its end tokens closed it (which has no text). An
  // incomplete character at the end of one that was cut off is left out.
  struct Text {
    std::string bytes;
    bool ended = false;
  };
  Text text(std::span<const int32_t> completion) const;
  // The student's tokens for it, with its end token where it ended.
  std::vector<int32_t> encode(const Text& text) const;

  // The student's targets for its own tokens of the teacher's completion: one distribution for each, appended to
  // `carried`. `theirs` has one for each of the teacher's tokens. Where the student's tokens are of other bytes
  // (normalisation, text that is not UTF-8) each target is the student's own token.
  void carry(std::span<const int32_t> completion, const SparseTargets& theirs, std::span<const int32_t> student_tokens,
             SparseTargets& carried) const;
  // The same without anything of the teacher's but its text.
  static void carry_text(std::span<const int32_t> student_tokens, SparseTargets& carried);

 private:
  struct Row;
  bool ends(int32_t teacher_token) const;
  std::string_view teacher_bytes(int32_t id) const;
  std::optional<int32_t> first_token(std::string_view bytes) const;
  std::optional<int32_t> counterpart(int32_t teacher_token) const;
  void carry_row(size_t first, std::span<const int32_t> completion, std::span<const size_t> ends,
                 const SparseTargets& theirs, int32_t student_token, size_t student_end, Row& row) const;

  EndedTokenizer teacher_, student_;
  std::unordered_map<std::string_view, int32_t> student_pieces_;  // by their bytes
  size_t longest_piece_ = 0;
  std::vector<int32_t> counterparts_;  // of the teacher's tokens, kNone where there is none
};

}  // namespace distill::data
