// What a teacher is asked: JSON Lines of
//   {"id": "sum-1", "prompt": "1 + 1 ="}                                         plain text, continued as it is
//   {"id": "sum-2", "messages": [{"role": "user", "content": "What is 2 + 2?"}],  a conversation, for the chat template
//    "answer": "4", "verifier": "numeric"}                                        what a right answer is, and who
//    checks it
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/chat_template.h"
#include "data/tokenizer.h"

namespace distill::data {

struct Prompt {
  std::string id;                       // unique in its file
  std::optional<std::string> text{};    // either this
  std::vector<ChatMessage> messages{};  // or this; the last one is not the assistant's
  std::optional<std::string> answer{};
  std::string verifier{};  // empty: completions are not checked; otherwise there is an answer
  size_t line = 0;         // in the file, from 1
};

// All prompts of a file, in order; "-" is standard input. Integer ids and numbers as answers become text. Throws Error
// naming file and line: bad JSON, not UTF-8, keys that are missing, unknown (with the nearest known one) or of the
// wrong type, an id that came before (with its line), an empty prompt, a verifier without an answer; or a file without
// prompts.
std::vector<Prompt> read_prompts(const std::filesystem::path& path);

// The tokens a model continues: of a plain text with what the tokenizer adds (a BOS), of a conversation as the template
// renders it up to where the answer begins. Throws Error naming the prompt if it is a conversation and the template is
// null, or not one that the template allows.
std::vector<int32_t> encode_prompt(const Prompt& prompt, const Tokenizer& tokenizer, const ChatTemplate* chat_template);

}  // namespace distill::data
