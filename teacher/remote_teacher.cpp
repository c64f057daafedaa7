#include "teacher/remote_teacher.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "core/philox.h"
#include "teacher/event_stream.h"

namespace distill::teacher {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kPollSeconds = 0.1;  // how soon an interrupt is noticed
constexpr size_t kMaxModelList = size_t{16} << 20;

Clock::duration seconds(double count) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(count));
}

bool may_pass(int64_t status) {
  return status == 0 || status == 200 || status == 408 || status == 425 || status == 429 || status >= 500;
}

// A request that the server understood and does not want: others may fare better.
bool is_about_the_prompt(int64_t status) {
  return status == 400 || status == 413 || status == 422;
}

}  // namespace

double RetryPolicy::delay(int64_t number, std::optional<double> retry_after, double jitter) const {
  const double doubled = first_seconds * static_cast<double>(int64_t{1} << std::clamp<int64_t>(number, 0, 30));
  const double wait = std::min(doubled, longest_seconds) * (0.5 + 0.5 * jitter);
  // Those who were sent away together don't come back together.
  return retry_after ? std::max(wait, *retry_after * (1 + 0.1 * jitter)) : wait;
}

std::string api_key_from_environment() {
  for (const char* name : {"DISTILL_API_KEY", "OPENAI_API_KEY"}) {
    const char* const key = std::getenv(name);
    if (key == nullptr || *key == '\0') continue;
    // It becomes a line of the request.
    for (const char* c = key; *c != '\0'; ++c) {
      if (static_cast<unsigned char>(*c) <= ' ' || *c == '\x7F')
        core::fail_usage("{} holds blanks or control characters", name);
    }
    return key;
  }
  return {};
}

// The requests of one run.
class RemoteTeacher::Run {
 public:
  Run(RemoteTeacher& teacher, const OnAnswer& on_answer, const OnRejection& on_rejection)
      : teacher_(teacher), on_answer_(on_answer), on_rejection_(on_rejection), transfers_(teacher.options_.http) {}

  Outcome run(const Source& source, const std::function<bool()>& interrupted);

 private:
  struct Job {
    RemoteRequest request;
    std::string body;
    int64_t attempts = 0;
    Clock::time_point not_before{};
    EventStream events{};
    std::optional<AnswerReader> reader{};
    std::string mismatch{};
  };

  bool has_room() const { return static_cast<int64_t>(jobs_.size()) < teacher_.options_.concurrency; }
  void start_due();
  void start(uint64_t id, Job& job);
  void settle(const HttpOutcome& outcome);
  void retry(uint64_t id, Job& job, const HttpOutcome& outcome, const std::string& reason);
  void reject(uint64_t id, const std::string& reason);

  RemoteTeacher& teacher_;
  const OnAnswer& on_answer_;
  const OnRejection& on_rejection_;
  std::map<uint64_t, Job> jobs_;    // under way or waiting for a retry
  HttpTransfers transfers_;         // after the jobs, which it writes to
  std::vector<uint64_t> waiting_;   // those that wait
  Clock::time_point paused_until_;  // the server wants none before
  uint64_t next_id_ = 0;
  int64_t answers_ = 0;
  int64_t rejections_ = 0;
};

RemoteTeacher::Outcome RemoteTeacher::Run::run(const Source& source, const std::function<bool()>& interrupted) {
  const RemoteOptions& options = teacher_.options_;
  for (bool more = true;;) {
    if (interrupted && interrupted()) return Outcome::kInterrupted;
    while (more && has_room()) {
      auto request = source();
      more = request.has_value();
      if (!more) break;
      const uint64_t id = next_id_++;
      std::string body = request_body(*request, options.api, teacher_.model_, options.top).dump();
      jobs_.emplace(id, Job{.request = *std::move(request), .body = std::move(body)});
      waiting_.push_back(id);
    }
    if (jobs_.empty()) return Outcome::kDone;
    start_due();
    for (const HttpOutcome& outcome : transfers_.poll(kPollSeconds)) settle(outcome);
  }
}

void RemoteTeacher::Run::start_due() {
  const auto now = Clock::now();
  if (now < paused_until_) return;
  std::erase_if(waiting_, [&](uint64_t id) {
    Job& job = jobs_.at(id);
    if (now < job.not_before) return false;
    start(id, job);
    return true;
  });
}

void RemoteTeacher::Run::start(uint64_t id, Job& job) {
  const RemoteOptions& options = teacher_.options_;
  ++teacher_.statistics_.requests;
  ++job.attempts;
  job.events = EventStream();
  job.reader.emplace(teacher_.mapper_, options.top, job.request.options.max_new_tokens);
  const char* const path = options.api == RemoteApi::kChat ? "/chat/completions" : "/completions";
  transfers_.post(id, teacher_.base_url_ + path, job.body, [this, &job](std::string_view piece) {
    try {
      job.events.push(piece, [&](std::string_view event) { job.reader->read(event); });
    } catch (const TokenMismatch& mismatch) {
      job.mismatch = teacher_.shown(mismatch.what());
      throw;
    }
  });
}

void RemoteTeacher::Run::settle(const HttpOutcome& outcome) {
  Job& job = jobs_.at(outcome.id);
  if (!job.mismatch.empty()) return reject(outcome.id, job.mismatch);
  const std::string reason = teacher_.describe(outcome);
  if (is_about_the_prompt(outcome.status) && outcome.error.empty()) return reject(outcome.id, reason);
  if (!may_pass(outcome.status)) {
    core::fail(
        "prompt \"{}\": {}{}", job.request.id, reason,
        outcome.status == 401 || outcome.status == 403 ? "; is the key in DISTILL_API_KEY or OPENAI_API_KEY?" : "");
  }
  if (outcome.status != 200 || !outcome.error.empty()) return retry(outcome.id, job, outcome, reason);
  if (!job.reader->complete()) return retry(outcome.id, job, outcome, "the answer broke off");
  try {
    AnswerReader::Answer answer = job.reader->finish(job.request);
    const auto& stop_tokens = job.request.options.stop_tokens;
    if (answer.finish_reason == data::FinishReason::kStop &&
        std::ranges::count(stop_tokens, answer.tokens.back()) == 0 && teacher_.statistics_.without_stop_token++ == 0) {
      core::log::warn("the server does not show the token that ends an answer: the traces end without it");
    }
    ++answers_;
    const auto node = jobs_.extract(outcome.id);
    on_answer_(node.mapped().request, std::move(answer));
  } catch (const TokenMismatch& mismatch) {
    reject(outcome.id, teacher_.shown(mismatch.what()));
  }
}

void RemoteTeacher::Run::retry(uint64_t id, Job& job, const HttpOutcome& outcome, const std::string& reason) {
  const RetryPolicy& policy = teacher_.options_.retry;
  core::check(job.attempts <= policy.retries, "prompt \"{}\": given up after {} attempts: {}", job.request.id,
              job.attempts, reason);
  core::Philox random(job.request.options.seed, core::stream_id(job.request.id, job.request.sample),
                      static_cast<uint64_t>(job.attempts));
  const double wait = policy.delay(job.attempts - 1, outcome.retry_after, random.next_double());
  core::log::warn("prompt \"{}\": {}; trying again in {:.1f} s", job.request.id, reason, wait);
  ++teacher_.statistics_.retries;
  job.not_before = Clock::now() + seconds(wait);
  if (outcome.retry_after) {
    paused_until_ = std::max(paused_until_, Clock::now() + seconds(*outcome.retry_after));
  }
  waiting_.push_back(id);
}

void RemoteTeacher::Run::reject(uint64_t id, const std::string& reason) {
  const auto node = jobs_.extract(id);
  const RemoteRequest& request = node.mapped().request;
  const std::string message = fmt::format("prompt \"{}\": {}", request.id, reason);
  core::check(answers_ > 0 || ++rejections_ < kRejectionsToGiveUp,
              "{}, and none of {} prompts before it was answered either", message, kRejectionsToGiveUp - 1);
  on_rejection_(request, message);
}

RemoteTeacher::RemoteTeacher(RemoteOptions options, std::shared_ptr<const data::Tokenizer> tokenizer)
    : options_(std::move(options)), base_url_(endpoint_base(options_.url)), mapper_(std::move(tokenizer)) {
  if (options_.concurrency < 1) core::fail_usage("batch: must be at least 1, is {}", options_.concurrency);
  if (options_.top < 1) core::fail_usage("targets: at least one alternative has to be kept");
  const std::string body = fetch(base_url_ + "/models");
  std::vector<ServedModel> models;
  try {
    if (!body.empty()) models = served_models(body);
  } catch (const core::Error& error) {
    core::fail("{}/models: {}", base_url_, shown(error.what()));
  }
  const auto named = std::ranges::find(models, options_.model, &ServedModel::name);
  if (named != models.end()) {
    model_ = *named;
  } else if (!options_.model.empty()) {
    // Servers may answer to more names than they list.
    model_ = {.name = options_.model, .kind = models.empty() ? ServerKind::kOther : models.front().kind};
  } else if (models.size() == 1) {
    model_ = models.front();
  } else {
    std::string names;
    for (size_t i = 0; i < std::min<size_t>(models.size(), 10); ++i) names += (i ? ", " : "") + models[i].name;
    core::fail_usage("{} serves {} models{}{}: name one with --remote-model", base_url_, models.size(),
                     names.empty() ? "" : ", such as ", shown(names));
  }
}

std::string RemoteTeacher::shown(std::string words) const {
  return presentable(std::move(words), options_.http.bearer_key);
}

std::string RemoteTeacher::describe(const HttpOutcome& outcome) const {
  if (outcome.status == 0 || outcome.status == 200) return shown(outcome.error);
  return fmt::format("the server answered {}: {}", outcome.status, shown(error_message(outcome.body)));
}

// The body of a GET, tried as often as answers are; empty if the server does not know the address.
std::string RemoteTeacher::fetch(const std::string& url) {
  HttpTransfers transfers(options_.http);
  for (int64_t attempt = 0;; ++attempt) {
    std::string body;
    transfers.get(0, url, [&](std::string_view piece) {
      core::check(body.size() + piece.size() <= kMaxModelList, "the list of models is larger than {} bytes",
                  kMaxModelList);
      body += piece;
    });
    std::vector<HttpOutcome> ended;
    while (ended.empty()) {
      if (core::interrupt_requested()) throw core::Interrupted("stopped");
      ended = transfers.poll(kPollSeconds);
    }
    const HttpOutcome& outcome = ended.front();
    if (outcome.status == 200 && outcome.error.empty()) return body;
    if (outcome.status == 404 || outcome.status == 405) return {};
    core::check(
        may_pass(outcome.status) && attempt < options_.retry.retries, "{}: {}{}", url, describe(outcome),
        outcome.status == 401 || outcome.status == 403 ? "; is the key in DISTILL_API_KEY or OPENAI_API_KEY?" : "");
    const double wait = options_.retry.delay(attempt, outcome.retry_after, 0.5);
    core::log::warn("{}: {}; trying again in {:.1f} s", url, describe(outcome), wait);
    for (const auto end = Clock::now() + seconds(wait); Clock::now() < end;) {
      if (core::interrupt_requested()) throw core::Interrupted("stopped");
      transfers.poll(std::min(kPollSeconds, wait));
    }
  }
}

RemoteTeacher::Outcome RemoteTeacher::run(const Source& source, const OnAnswer& on_answer,
                                          const OnRejection& on_rejection, const std::function<bool()>& interrupted) {
  return Run(*this, on_answer, on_rejection).run(source, interrupted);
}

}  // namespace distill::teacher
