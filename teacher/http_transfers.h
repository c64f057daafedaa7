// HTTP requests side by side in one thread, over libcurl: each is a small exchange whose answer is handed over as it
// arrives. Nothing is tried twice here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace distill::teacher {

struct HttpOptions {
  double connect_seconds = 10;  // to reach the server
  double stall_seconds = 300;   // without a byte, until the server counts as hanging
  std::string bearer_key{};     // sent as "Authorization: Bearer"; empty sends none
};

struct HttpOutcome {
  uint64_t id = 0;
  // Of the answer, 0 if there was none. 200 is success only if `error` is empty: the answer may have been cut.
  int64_t status = 0;
  std::string error{};                  // of the transfer, in words; empty if the exchange was complete
  std::string body{};                   // of an answer other than 200, at most its first 64 KiB
  std::optional<double> retry_after{};  // seconds, where the server says when to come back
};

// Follows no redirects, so that a key goes nowhere but to the server named. Not thread-safe.
class HttpTransfers {
 public:
  explicit HttpTransfers(HttpOptions options);
  ~HttpTransfers();  // ends all transfers
  HttpTransfers(const HttpTransfers&) = delete;
  HttpTransfers& operator=(const HttpTransfers&) = delete;

  // Called with pieces of a 200 answer. What it throws ends the transfer, which poll() then reports.
  using OnData = std::function<void(std::string_view piece)>;

  // Begins a GET, or a POST of a JSON text.
  void get(uint64_t id, const std::string& url, OnData on_data);
  void post(uint64_t id, const std::string& url, std::string json, OnData on_data);

  // Moves all transfers on, waiting for at most `seconds` until something happens; returns those that ended. An
  // exception of a transfer's `on_data` is reported as its `error`.
  std::vector<HttpOutcome> poll(double seconds);
  int64_t active() const;

 private:
  struct Transfer;
  struct State;
  void start(uint64_t id, const std::string& url, std::optional<std::string> json, OnData on_data);

  std::unique_ptr<State> state_;
};

}  // namespace distill::teacher
