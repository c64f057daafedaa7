// Which special tokens an encoded text is framed with: the "post_processor" of a tokenizer.json, for single sequences.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "data/vocabulary.h"

namespace distill::data {

struct PostProcessor {
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;

  // Reads TemplateProcessing, ByteLevel (which changes no ids) and Sequence; null frames with nothing. Throws Error
  // naming what is not supported or not in the vocabulary.
  static PostProcessor from_json(const nlohmann::json& config, const Vocabulary& vocabulary);

  // As from_json reads it, with token texts from `vocabulary`.
  nlohmann::json to_json(const Vocabulary& vocabulary) const;
};

}  // namespace distill::data
