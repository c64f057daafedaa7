// Cuts text into the pieces that BPE works on, as the "pre_tokenizer" of a byte-level tokenizer.json says: Split,
// Digits, and ByteLevel at the end, in a Sequence or alone.
#pragma once

#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "data/split_pattern.h"

namespace distill::data {

// Pieces of a text and the room they need; reused from text to text.
struct Pieces {
  std::vector<std::string_view> views;
  std::deque<std::string> rewritten;  // pieces that are not part of the text

  std::vector<std::string_view> previous;  // scratch
  std::vector<Segment> segments;           // scratch
};

// One step: cuts each piece further.
class PreTokenizerStep {
 public:
  virtual ~PreTokenizerStep() = default;
  // Replaces pieces.views by what they are cut into. No piece is empty.
  virtual void apply(Pieces& pieces) const = 0;
  virtual nlohmann::json to_json() const = 0;
};

// Immutable and safe to use from several threads at once.
class PreTokenizer {
 public:
  // Throws Error naming what is not supported.
  static PreTokenizer from_json(const nlohmann::json& config);

  // pieces.views becomes the pieces of `text` (valid UTF-8, shorter than 4 GiB), views of `text` or pieces.rewritten.
  void apply(std::string_view text, Pieces& pieces) const;

  nlohmann::json to_json() const;

 private:
  std::vector<std::unique_ptr<const PreTokenizerStep>> steps_;
};

}  // namespace distill::data
