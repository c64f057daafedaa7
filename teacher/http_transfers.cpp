#include "teacher/http_transfers.h"

#include <curl/curl.h>

#include <algorithm>
#include <array>
#include <exception>
#include <map>
#include <utility>

#include "core/error.h"

namespace distill::teacher {
namespace {

constexpr size_t kMaxErrorBody = size_t{64} << 10;

void initialise_curl() {
  static const CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
  core::check(code == CURLE_OK, "libcurl: {}", curl_easy_strerror(code));
}

void check_multi(CURLMcode code) {
  core::check(code == CURLM_OK, "libcurl: {}", curl_multi_strerror(code));
}

template <typename Value>
void set(CURL* handle, CURLoption option, Value value) {
  const CURLcode code = curl_easy_setopt(handle, option, value);
  core::check(code == CURLE_OK, "libcurl: {}", curl_easy_strerror(code));
}

}  // namespace

struct HttpTransfers::Transfer {
  HttpOutcome outcome;
  std::optional<std::string> json;
  OnData on_data;
  std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> handle{curl_easy_init(), curl_easy_cleanup};
  std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers{nullptr, curl_slist_free_all};
  std::array<char, CURL_ERROR_SIZE> error{};
  std::string failure;  // of on_data

  void add_header(const std::string& line) {
    curl_slist* const list = curl_slist_append(headers.get(), line.c_str());
    core::check(list != nullptr, "libcurl: out of memory");
    (void)headers.release();
    headers.reset(list);
  }

  // libcurl's write callback: C code, through which no exception may pass.
  static size_t receive(char* data, size_t size, size_t count, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    const size_t bytes = size * count;
    long status = 0;
    curl_easy_getinfo(transfer.handle.get(), CURLINFO_RESPONSE_CODE, &status);
    try {
      if (status == 200) {
        transfer.on_data({data, bytes});
      } else {
        std::string& body = transfer.outcome.body;
        body.append(data, std::min(bytes, kMaxErrorBody - body.size()));
      }
      return bytes;
    } catch (const std::exception& error) {
      transfer.failure = error.what();
      return CURL_WRITEFUNC_ERROR;
    }
  }
};

struct HttpTransfers::State {
  HttpOptions options;
  std::unique_ptr<CURLM, decltype(&curl_multi_cleanup)> multi{nullptr, curl_multi_cleanup};
  std::map<CURL*, std::unique_ptr<Transfer>> transfers{};

  std::unique_ptr<Transfer> take(CURL* handle) {
    auto node = transfers.extract(handle);
    curl_multi_remove_handle(multi.get(), handle);
    return std::move(node.mapped());
  }
};

HttpTransfers::HttpTransfers(HttpOptions options) : state_(std::make_unique<State>(std::move(options))) {
  initialise_curl();
  state_->multi.reset(curl_multi_init());
  core::check(state_->multi != nullptr, "libcurl: out of memory");
}

HttpTransfers::~HttpTransfers() {
  while (!state_->transfers.empty()) state_->take(state_->transfers.begin()->first);
}

int64_t HttpTransfers::active() const {
  return static_cast<int64_t>(state_->transfers.size());
}

void HttpTransfers::get(uint64_t id, const std::string& url, OnData on_data) {
  start(id, url, std::nullopt, std::move(on_data));
}

void HttpTransfers::post(uint64_t id, const std::string& url, std::string json, OnData on_data) {
  start(id, url, std::move(json), std::move(on_data));
}

void HttpTransfers::start(uint64_t id, const std::string& url, std::optional<std::string> json, OnData on_data) {
  auto transfer = std::make_unique<Transfer>();
  CURL* const handle = transfer->handle.get();
  core::check(handle != nullptr, "libcurl: out of memory");
  const HttpOptions& options = state_->options;
  transfer->outcome.id = id;
  transfer->json = std::move(json);
  transfer->on_data = std::move(on_data);
  set(handle, CURLOPT_URL, url.c_str());
  set(handle, CURLOPT_PROTOCOLS_STR, "http,https");
  set(handle, CURLOPT_NOSIGNAL, 1L);
  set(handle, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options.connect_seconds * 1000));
  set(handle, CURLOPT_LOW_SPEED_LIMIT, 1L);
  set(handle, CURLOPT_LOW_SPEED_TIME, std::max(1L, static_cast<long>(options.stall_seconds)));
  set(handle, CURLOPT_ERRORBUFFER, transfer->error.data());
  set(handle, CURLOPT_WRITEFUNCTION, &Transfer::receive);
  set(handle, CURLOPT_WRITEDATA, transfer.get());
  if (transfer->json) {
    transfer->add_header("Content-Type: application/json");
    transfer->add_header("Expect:");  // no round trip to ask whether the body is welcome
    set(handle, CURLOPT_POSTFIELDS, transfer->json->c_str());
    set(handle, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(transfer->json->size()));
  }
  if (!options.bearer_key.empty()) transfer->add_header("Authorization: Bearer " + options.bearer_key);
  set(handle, CURLOPT_HTTPHEADER, transfer->headers.get());
  check_multi(curl_multi_add_handle(state_->multi.get(), handle));
  state_->transfers.emplace(handle, std::move(transfer));
}

std::vector<HttpOutcome> HttpTransfers::poll(double seconds) {
  int running = 0;
  check_multi(curl_multi_perform(state_->multi.get(), &running));
  if (running == active()) {
    check_multi(curl_multi_poll(state_->multi.get(), nullptr, 0, static_cast<int>(seconds * 1000), nullptr));
    check_multi(curl_multi_perform(state_->multi.get(), &running));
  }
  std::vector<HttpOutcome> ended;
  for (int left = 0; const CURLMsg* message = curl_multi_info_read(state_->multi.get(), &left);) {
    if (message->msg != CURLMSG_DONE) continue;
    CURL* const handle = message->easy_handle;
    const CURLcode code = message->data.result;  // before the message goes with the handle
    const auto transfer = state_->take(handle);
    HttpOutcome& outcome = transfer->outcome;
    long status = 0;
    curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
    outcome.status = status;
    curl_off_t retry_after = 0;
    curl_easy_getinfo(handle, CURLINFO_RETRY_AFTER, &retry_after);
    if (retry_after > 0) outcome.retry_after = static_cast<double>(retry_after);
    if (code != CURLE_OK) {
      outcome.error = !transfer->failure.empty()   ? transfer->failure
                      : transfer->error[0] != '\0' ? std::string(transfer->error.data())
                                                   : std::string(curl_easy_strerror(code));
    }
    ended.push_back(std::move(outcome));
  }
  return ended;
}

}  // namespace distill::teacher
