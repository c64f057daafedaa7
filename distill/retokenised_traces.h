// Traces for a student whose tokenizer is not the teacher's: as text, in the student's tokens and with its chat
// template, each token with what the teacher's distributions say of it (data/token_alignment.h) or, for distillation
// from text alone (Kim & Rush 2016, arXiv 1606.07947, §3.2), with itself.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/chat_template.h"
#include "data/token_alignment.h"
#include "data/tokenizer.h"
#include "data/trace_source.h"

namespace distill {

// What turns a model's text into its tokens.
struct TextTools {
  std::shared_ptr<const data::Tokenizer> tokenizer;
  std::shared_ptr<const data::ChatTemplate> chat_template;  // or null
  std::vector<int32_t> stop_tokens;                         // that end an answer
};

// Documents keep their numbers and keys. Those that cannot be carried over (see the constructor) have no completion,
// which leaves them out of every batch. Provenance is that of the traces, but for the tokenizer, chat template,
// vocabulary and reasoning tokens, which are the student's, and hidden states, which belong to the teacher's tokens.
class RetokenisedTraces final : public data::TraceSource {
 public:
  // Reads the text of every document, to know their lengths. A prompt that the teacher's template rendered is taken
  // apart and rendered by the student's. Warns of documents left out: an empty answer, or special tokens in a prompt
  // that no message list accounts for. Throws Error if the traces hold conversations and a template is missing, or no
  // document is left. `distributions`: of the teacher; without them each target is the token that was written.
  RetokenisedTraces(std::shared_ptr<const data::TraceSource> traces, TextTools teacher, TextTools student,
                    bool distributions);

  const data::TraceProvenance& provenance() const override { return provenance_; }
  size_t size() const override { return lengths_.size(); }
  Lengths lengths(size_t index) const override { return lengths_[index]; }
  std::string prompt_id(size_t index) const override { return traces_->prompt_id(index); }
  data::TraceKey key(size_t index) const override { return traces_->key(index); }
  data::Trace read(size_t index) const override;
  using TraceSource::read;
  data::TraceDocument read_document(size_t index) const override;
  bool carried_over() const override { return true; }

 private:
  struct Retokenised {
    data::TraceDocument document;
    std::string refusal;  // why it cannot be carried over; then the document is as it was
  };
  Retokenised retokenise(const data::TraceDocument& document) const;
  static data::TraceDocument required(size_t index, Retokenised&& result);
  // Nothing if there are special tokens in it, but it is no conversation.
  std::optional<std::vector<int32_t>> prompt(std::span<const int32_t> tokens) const;
  void measure();

  std::shared_ptr<const data::TraceSource> traces_;
  TextTools teacher_, student_;
  data::TokenAlignment alignment_;
  bool distributions_;
  data::TraceProvenance provenance_;
  std::vector<Lengths> lengths_;
};

}  // namespace distill
