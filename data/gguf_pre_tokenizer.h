// What llama.cpp's name of a pre-tokenizer ("tokenizer.ggml.pre") stands for, in the words of tokenizer.json.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

namespace distill::data {

struct GgufPreTokenizer {
  nlohmann::json normalizer;  // null: none
  nlohmann::json pre_tokenizer;
  bool ignore_merges = false;
  bool add_bos_token = false;  // where the file does not say
};

// Throws Error naming the names that are known.
GgufPreTokenizer gguf_pre_tokenizer(std::string_view name, bool add_prefix_space);

}  // namespace distill::data
