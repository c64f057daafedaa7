// A teacher behind an OpenAI-compatible server: many prompts under way at once, each answer with the server's top
// log-probabilities as targets.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/interrupt.h"
#include "data/tokenizer.h"
#include "teacher/completion_api.h"
#include "teacher/http_transfers.h"

namespace distill::teacher {

struct RetryPolicy {
  int64_t retries = 8;         // of one request, until the whole run gives up
  double first_seconds = 0.5;  // doubled with each retry
  double longest_seconds = 60;

  // How long to wait before retry `number` (from 0): the back-off, of which `jitter` in [0, 1) keeps between half and
  // all, but no less than the server asked for.
  double delay(int64_t number, std::optional<double> retry_after, double jitter) const;
};

struct RemoteOptions {
  std::string url;    // see endpoint_base()
  std::string model;  // empty: the only one that is served
  RemoteApi api = RemoteApi::kCompletions;
  int64_t concurrency = 16;
  int32_t top = 64;  // alternatives kept at each position
  HttpOptions http{};
  RetryPolicy retry{};
};

struct RemoteStatistics {
  uint64_t requests = 0;  // sent, retries included
  uint64_t retries = 0;
  uint64_t without_stop_token = 0;  // answers that ended with a token the server does not show
};

// The key of a remote server: $DISTILL_API_KEY, or else $OPENAI_API_KEY; empty if neither is set.
std::string api_key_from_environment();

// Not thread-safe.
class RemoteTeacher {
 public:
  // Asks the server what it serves. Throws UsageError if the URL or model makes no sense, and Error if the server does
  // not answer.
  RemoteTeacher(RemoteOptions options, std::shared_ptr<const data::Tokenizer> tokenizer);

  const std::string& base_url() const { return base_url_; }
  const ServedModel& model() const { return model_; }
  const RemoteStatistics& statistics() const { return statistics_; }

  using Source = std::function<std::optional<RemoteRequest>()>;
  using OnAnswer = std::function<void(const RemoteRequest&, AnswerReader::Answer&&)>;
  using OnRejection = std::function<void(const RemoteRequest&, const std::string& reason)>;
  enum class Outcome { kDone, kInterrupted };

  // Takes requests from `source` until it gives none. What may pass is tried again: no connection, a cut or senseless
  // answer, a server that hangs, fails or asks for patience. A prompt that the server refuses, or whose answer does not
  // fit the tokenizer, is rejected and the others go on; but if the first kRejectionsToGiveUp all are, the reason is
  // not in the prompts: Error. Error too if a request fails beyond the retries or the server refuses the key or the
  // model.
  Outcome run(const Source& source, const OnAnswer& on_answer, const OnRejection& on_rejection,
              const std::function<bool()>& interrupted = core::interrupt_requested);

  static constexpr int64_t kRejectionsToGiveUp = 8;

 private:
  class Run;
  std::string fetch(const std::string& url);
  // All that a server says goes through these before it becomes part of a message.
  std::string shown(std::string words) const;
  std::string describe(const HttpOutcome& outcome) const;

  RemoteOptions options_;
  std::string base_url_;
  RemoteTokenMapper mapper_;
  ServedModel model_;
  RemoteStatistics statistics_;
};

}  // namespace distill::teacher
