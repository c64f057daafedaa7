#include "teacher/completion_api.h"

#include <curl/curl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/philox.h"
#include "core/text_file.h"

namespace distill::teacher {
namespace {

using nlohmann::json;

constexpr size_t kMaxShownBytes = 400;
constexpr double kMassTolerance = 1e-3;  // of probabilities that servers round
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

json parse(std::string_view text) {
  try {
    return core::parse_json(text, core::DuplicateKeys::kTakeLast);
  } catch (const core::Error& error) {
    core::fail("the server's answer is no JSON that can be read ({}): {}", error.what(),
               json(text).dump(-1, ' ', false, json::error_handler_t::replace));
  }
}

const json* find(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

const json& require_array(const json& object, const char* key) {
  const json* const value = find(object, key);
  core::check(value != nullptr && value->is_array(), "the server's answer has no list \"{}\"", key);
  return *value;
}

double number_or_minus_infinity(const json& value) {
  core::check(value.is_number() || value.is_null(), "a log-probability is {}", value.type_name());
  return value.is_null() ? -std::numeric_limits<double>::infinity() : value.get<double>();
}

std::optional<int64_t> integer(const json& object, const char* key) {
  const json* const value = find(object, key);
  if (value == nullptr || !value->is_number_integer()) return std::nullopt;
  return value->get<int64_t>();
}

// The part of a URL; empty if it has none.
std::string part(CURLU* url, CURLUPart which) {
  char* text = nullptr;
  if (curl_url_get(url, which, &text, 0) != CURLUE_OK) return {};
  const std::unique_ptr<char, decltype(&curl_free)> owner(text, curl_free);
  return text;
}

}  // namespace

std::vector<ServedModel> served_models(std::string_view body) {
  std::vector<ServedModel> models;
  const json list = parse(body);
  for (const json& model : require_array(list, "data")) {
    const json* const name = find(model, "id");
    core::check(name != nullptr && name->is_string(), "the server lists a model without a name");
    const json* const owner = find(model, "owned_by");
    const bool named = owner != nullptr && owner->is_string();
    models.push_back({.name = name->get<std::string>(),
                      .kind = named && *owner == "llamacpp" ? ServerKind::kLlamaCpp
                              : named && *owner == "vllm"   ? ServerKind::kVllm
                                                            : ServerKind::kOther});
  }
  return models;
}

std::string endpoint_base(std::string_view url) {
  const std::unique_ptr<CURLU, decltype(&curl_url_cleanup)> parsed(curl_url(), curl_url_cleanup);
  const std::string text(url);
  const CURLUcode code = curl_url_set(parsed.get(), CURLUPART_URL, text.c_str(), 0);
  // The URL itself is not repeated where it may hold a password.
  if (code != CURLUE_OK) core::fail_usage("teacher: not a URL: {}", curl_url_strerror(code));
  const std::string scheme = part(parsed.get(), CURLUPART_SCHEME);
  if (scheme != "http" && scheme != "https") core::fail_usage("teacher: {} is neither http nor https", scheme);
  for (const CURLUPart which : {CURLUPART_USER, CURLUPART_PASSWORD, CURLUPART_QUERY, CURLUPART_FRAGMENT}) {
    if (!part(parsed.get(), which).empty()) {
      core::fail_usage(
          "teacher: a URL with a user, password, query or fragment would be stored with the traces; give a "
          "key in DISTILL_API_KEY or OPENAI_API_KEY");
    }
  }
  std::string base = text;
  while (base.ends_with('/')) base.pop_back();
  const size_t slash = base.rfind('/');
  const std::string_view last = std::string_view(base).substr(slash + 1);
  const bool versioned = last.size() >= 2 && last[0] == 'v' && last.find_first_not_of("0123456789", 1) == last.npos;
  return versioned ? base : base + "/v1";
}

json request_body(const RemoteRequest& request, RemoteApi api, const ServedModel& model, int32_t top) {
  const nn::GenerateOptions& options = request.options;
  const nn::SamplingOptions& sampling = options.sampling;
  json body{
      {"model", model.name},
      {"max_tokens", options.max_new_tokens},
      {"temperature", sampling.temperature},
      {"top_p", sampling.top_p},
      // One answer's random numbers, as far as the server keeps to it; some take no more than 31 bits.
      {"seed", (options.seed ^ core::stream_id(request.id, request.sample)) & 0x7FFFFFFF},
      {"stream", true},
      {"stream_options", {{"include_usage", true}}},
  };
  if (api == RemoteApi::kChat) {
    body["messages"] = json::array();
    for (const auto& message : request.messages) {
      body["messages"].push_back({{"role", message.role}, {"content", message.content}});
    }
    body["logprobs"] = true;
    body["top_logprobs"] = top;
  } else {
    body["prompt"] = request.prompt;
    body["logprobs"] = top;
  }
  // Servers that know more filters than OpenAI's would apply defaults of their own.
  if (model.kind != ServerKind::kOther || sampling.top_k != 0) body["top_k"] = sampling.top_k;
  if (model.kind != ServerKind::kOther || sampling.min_p != 0) body["min_p"] = sampling.min_p;
  if (model.kind == ServerKind::kVllm) {
    if (sampling.top_k == 0) body["top_k"] = -1;
    body["return_tokens_as_token_ids"] = true;
  }
  return body;
}

std::string error_message(std::string_view body) {
  std::string message;
  try {
    const json parsed = parse(body);
    const json* error = find(parsed, "error");
    if (const json* text = error == nullptr ? nullptr : find(*error, "message")) error = text;
    message = error == nullptr ? std::string(body) : error->is_string() ? error->get<std::string>() : error->dump();
  } catch (const core::Error&) {
    message = body;
  }
  return message.empty() ? "no reason given" : message;
}

std::string presentable(std::string words, std::string_view key) {
  constexpr std::string_view kMark = "<key>";
  for (size_t at = 0; !key.empty() && (at = words.find(key, at)) != std::string::npos; at += kMark.size()) {
    words.replace(at, key.size(), kMark);
  }
  // Not before the key is out: a part of it would stay.
  if (words.size() > kMaxShownBytes) words.replace(kMaxShownBytes, std::string::npos, "...");
  std::ranges::replace_if(
      words, [](char c) { return static_cast<unsigned char>(c) < ' '; }, ' ');
  for (size_t at = 0; (at = core::find_invalid_utf8(words)) != std::string::npos;) words[at] = '?';
  return words;
}

void AnswerReader::read(std::string_view event) {
  if (event == "[DONE]") {
    done_ = true;
    return;
  }
  const json chunk = parse(event);
  if (find(chunk, "error") != nullptr) core::fail("the server failed: {}", error_message(event));
  if (const json* const usage = find(chunk, "usage")) {
    if (const auto tokens = integer(*usage, "prompt_tokens")) prompt_tokens_ = tokens;
    if (const auto tokens = integer(*usage, "completion_tokens")) completion_tokens_ = tokens;
  }
  const json& choices = require_array(chunk, "choices");
  core::check(choices.size() <= 1, "the server sent {} answers at once, one was asked for", choices.size());
  for (const json& choice : choices) read_choice(choice);
}

void AnswerReader::read_choice(const json& choice) {
  if (const json* const logprobs = find(choice, "logprobs")) {
    if (const json* const rows = find(*logprobs, "content")) {
      read_rows(*rows);
    } else if (find(*logprobs, "tokens") != nullptr) {
      read_columns(*logprobs);
    }
  }
  if (const json* const text = find(choice, "text"); text != nullptr && text->is_string()) {
    if (!text_) text_.emplace();
    *text_ += text->get_ref<const std::string&>();
  }
  if (const json* const reason = find(choice, "finish_reason"); reason != nullptr && reason->is_string()) {
    finish_reason_ = reason->get<std::string>();
  }
}

void AnswerReader::read_rows(const json& rows) {
  core::check(rows.is_array(), "\"logprobs\" holds no list");
  for (const json& row : rows) {
    std::vector<RemoteToken> alternatives;
    if (find(row, "top_logprobs") != nullptr) {
      for (const json& token : require_array(row, "top_logprobs"))
        alternatives.push_back(RemoteToken::from_json(token));
    }
    add(RemoteToken::from_json(row), alternatives);
  }
}

void AnswerReader::read_columns(const json& logprobs) {
  const json& tokens = require_array(logprobs, "tokens");
  const json& chosen = require_array(logprobs, "token_logprobs");
  const json& top = require_array(logprobs, "top_logprobs");
  core::check(chosen.size() == tokens.size() && top.size() == tokens.size(),
              "the server sent {} tokens with {} log-probabilities and {} lists of alternatives", tokens.size(),
              chosen.size(), top.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    core::check(tokens[i].is_string() && (top[i].is_object() || top[i].is_null()), "the server's token {} is no text",
                i);
    std::vector<RemoteToken> alternatives;
    for (const auto& [text, value] : top[i].items()) {
      alternatives.push_back({.text = text, .log_probability = number_or_minus_infinity(value)});
    }
    add({.text = tokens[i].get<std::string>(), .log_probability = number_or_minus_infinity(chosen[i])}, alternatives);
  }
}

void AnswerReader::add(const RemoteToken& token, const std::vector<RemoteToken>& alternatives) {
  core::with_context(fmt::format("answer token {}", answer_.tokens.size()), [&] {
    core::check(static_cast<int64_t>(answer_.tokens.size()) < max_tokens_, "the server sent more than the {} allowed",
                max_tokens_);
    if (alternatives.empty()) {
      throw TokenMismatch("the server sent no \"top_logprobs\": it does not offer them, or not for this model");
    }
    if (!std::isfinite(token.log_probability) || token.log_probability > kMassTolerance) {
      throw TokenMismatch(fmt::format("the token that was drawn has a log-probability of {}", token.log_probability));
    }
    answer_.tokens.push_back(mapper_.id_of(token));
    answer_.log_probability += token.log_probability;

    std::vector<std::pair<double, int32_t>> sorted;  // minus the log-probability, id
    for (const RemoteToken& other : alternatives) {
      if (other.log_probability > kMassTolerance) {
        throw TokenMismatch(fmt::format("an alternative has a log-probability of {}", other.log_probability));
      }
      sorted.emplace_back(-other.log_probability, mapper_.id_of(other));
    }
    std::ranges::sort(sorted);
    sorted.resize(std::min(sorted.size(), static_cast<size_t>(top_)));
    double sum = 0;
    std::set<int32_t> seen;
    for (const auto& [surprise, id] : sorted) {
      if (!seen.insert(id).second) throw TokenMismatch(fmt::format("the server lists token {} twice", id));
      sum += std::exp(-surprise);
    }
    if (sum > 1 + kMassTolerance) throw TokenMismatch(fmt::format("the server's probabilities sum to {}", sum));
    data::SparseTargets& targets = answer_.targets;
    for (const auto& [surprise, id] : sorted) {
      targets.ids.push_back(id);
      targets.weights.push_back(static_cast<float>(std::exp(-surprise) / std::max(1.0, sum)));
    }
    targets.offsets.push_back(static_cast<int64_t>(targets.ids.size()));
    targets.uncovered.push_back(static_cast<float>(std::max(0.0, 1 - sum)));
  });
}

// What servers show: nothing of special tokens and, at the end, of bytes that are no character yet.
void AnswerReader::check_text(const std::vector<int32_t>& stop_tokens) const {
  if (!text_) return;
  std::vector<int32_t> shown = answer_.tokens;
  if (!shown.empty() && std::ranges::count(stop_tokens, shown.back()) > 0) shown.pop_back();
  std::string ours = mapper_.tokenizer().decode(shown, /*skip_special_tokens=*/true);
  if (ours == *text_ || mapper_.tokenizer().decode(shown, /*skip_special_tokens=*/false) == *text_) return;
  while (ours.ends_with(kReplacement)) ours.resize(ours.size() - kReplacement.size());
  std::string theirs = *text_;
  while (theirs.ends_with(kReplacement)) theirs.resize(theirs.size() - kReplacement.size());
  const auto [a, b] = std::ranges::mismatch(ours, theirs);
  if (a == ours.end() && b == theirs.end()) return;
  throw TokenMismatch(fmt::format("the server's text differs from that of its tokens at byte {}", a - ours.begin()));
}

AnswerReader::Answer AnswerReader::finish(const RemoteRequest& request) {
  const auto prompt_length = static_cast<int64_t>(request.prompt.size());
  if (prompt_tokens_ && *prompt_tokens_ != prompt_length) {
    throw TokenMismatch(
        fmt::format("the server read {} prompt tokens where the local tokenizer and template make {}: "
                    "they are not the model's own",
                    *prompt_tokens_, prompt_length));
  }
  if (finish_reason_ != "stop" && finish_reason_ != "length") {
    throw TokenMismatch(fmt::format("the server ended the answer with \"{}\"", finish_reason_));
  }
  answer_.finish_reason = finish_reason_ == "stop" ? data::FinishReason::kStop : data::FinishReason::kLength;
  const auto received = static_cast<int64_t>(answer_.tokens.size());
  const auto& stop_tokens = request.options.stop_tokens;
  const bool stop_token_came = received > 0 && std::ranges::count(stop_tokens, answer_.tokens.back()) > 0;
  // An end token that the server counts but does not show.
  const int64_t hidden = answer_.finish_reason == data::FinishReason::kStop && !stop_token_came ? 1 : 0;
  if (completion_tokens_ && *completion_tokens_ != received && *completion_tokens_ != received + hidden) {
    throw TokenMismatch(
        fmt::format("the server made {} tokens but sent the log-probabilities of {}", *completion_tokens_, received));
  }
  if (received == 0) throw TokenMismatch("the server sent no tokens");
  if (!std::isfinite(answer_.log_probability)) throw TokenMismatch("a token that was drawn has no probability");
  check_text(stop_tokens);
  return std::move(answer_);
}

}  // namespace distill::teacher
