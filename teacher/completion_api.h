// What OpenAI's completions and chat API want to hear and what they answer, as OpenAI, llama.cpp, vLLM and others speak
// it: requests as JSON, streamed answers back to tokens and distributions.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat_template.h"
#include "data/target_distribution.h"
#include "data/trace.h"
#include "nn/generation_request.h"
#include "teacher/remote_tokens.h"

namespace distill::teacher {

enum class RemoteApi {
  kCompletions,  // prompts go as token ids: no doubt about what the model reads
  kChat,         // conversations go as they are, the server applies its template
};

// Who serves decides what may be asked beside OpenAI's own parameters.
enum class ServerKind { kOther, kLlamaCpp, kVllm };

struct ServedModel {
  std::string name;
  ServerKind kind = ServerKind::kOther;
};

// The models of an answer to GET /v1/models. Throws Error if it is none.
std::vector<ServedModel> served_models(std::string_view body);

// "http://host:8000/v1" of what a user writes, with or without "/v1". Throws UsageError if it is no http(s) URL, or one
// with a user, password, query or fragment: it is kept with the traces.
std::string endpoint_base(std::string_view url);

// One answer to one prompt.
struct RemoteRequest {
  std::string id;
  uint32_t sample = 0;
  std::vector<int32_t> prompt;                // as the local tokenizer and template make it
  std::vector<data::ChatMessage> messages{};  // for the chat API
  nn::GenerateOptions options{};
};

// The body of its POST. `top` is how many alternatives are wanted at each position.
nlohmann::json request_body(const RemoteRequest& request, RemoteApi api, const ServedModel& model, int32_t top);

// "message" of an error a server answers with, or the whole text if it is no such JSON.
std::string error_message(std::string_view body);

// What a server says, as it may be shown and kept: one short line of UTF-8 without `key`, which servers repeat.
std::string presentable(std::string words, std::string_view key);

// Puts an answer together from the events of its stream.
class AnswerReader {
 public:
  // Keeps the `top` most probable alternatives of each position. `mapper` outlives the reader.
  AnswerReader(const RemoteTokenMapper& mapper, int32_t top, int64_t max_tokens)
      : mapper_(mapper), top_(top), max_tokens_(max_tokens) {}

  // Throws TokenMismatch "answer token 3: ...", and Error for what is no such answer.
  void read(std::string_view event);

  // Whether the stream came to its proper end.
  bool complete() const { return done_ && !finish_reason_.empty(); }

  struct Answer {
    std::vector<int32_t> tokens;
    data::SparseTargets targets;
    data::FinishReason finish_reason = data::FinishReason::kStop;
    double log_probability = 0;  // sum of what the server says of its tokens
  };
  // Of a complete stream, checked against what the server says of it. Throws TokenMismatch where they contradict each
  // other: another number of tokens of prompt or answer, another text, an answer that ended for some other reason.
  Answer finish(const RemoteRequest& request);

 private:
  void read_choice(const nlohmann::json& choice);
  void read_columns(const nlohmann::json& logprobs);  // {"tokens": [], "token_logprobs": [], "top_logprobs": []}
  void read_rows(const nlohmann::json& rows);         // [{"token", "logprob", "top_logprobs": []}]
  void add(const RemoteToken& token, const std::vector<RemoteToken>& alternatives);
  void check_text(const std::vector<int32_t>& stop_tokens) const;

  const RemoteTokenMapper& mapper_;
  int32_t top_;
  int64_t max_tokens_;
  Answer answer_;
  std::optional<std::string> text_;  // of the completions API
  std::string finish_reason_;
  std::optional<int64_t> prompt_tokens_, completion_tokens_;
  bool done_ = false;
};

}  // namespace distill::teacher
