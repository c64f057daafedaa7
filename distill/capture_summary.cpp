#include "distill/capture_summary.h"

#include <nlohmann/json.hpp>

#include "data/trace_reader.h"

namespace distill {

double CaptureSummary::tokens_per_second() const {
  return seconds > 0 ? static_cast<double>(completion_tokens) / seconds : 0;
}

double CaptureSummary::bytes_per_token() const {
  return total_completion_tokens > 0 ? static_cast<double>(total_bytes) / static_cast<double>(total_completion_tokens)
                                     : 0;
}

nlohmann::json CaptureSummary::to_json() const {
  nlohmann::json result{{"traces", traces},
                        {"already_there", already_there},
                        {"prompt_tokens", prompt_tokens},
                        {"completion_tokens", completion_tokens},
                        {"reasoning_tokens", reasoning_tokens},
                        {"seconds", seconds},
                        {"tokens_per_second", tokens_per_second()},
                        {"interrupted", interrupted},
                        {"total",
                         {{"traces", total_traces},
                          {"completion_tokens", total_completion_tokens},
                          {"bytes", total_bytes},
                          {"bytes_per_token", bytes_per_token()}}}};
  for (size_t i = 0; i < finish_reasons.size(); ++i) {
    result["finish_reasons"][std::string(to_string(static_cast<data::FinishReason>(i)))] = finish_reasons[i];
  }
  for (size_t i = 0; i < verdicts.size(); ++i) {
    result["verdicts"][std::string(to_string(static_cast<data::Verdict>(i)))] = verdicts[i];
  }
  result["drafts"] = nlohmann::json::array();
  for (const auto& count : drafts) {
    result["drafts"].push_back(
        {{"checked", count.checked}, {"accepted", count.accepted}, {"acceptance", count.acceptance()}});
  }
  if (!drafts.empty()) result["tokens_per_pass"] = nn::tokens_per_pass(drafts);
  result["rejected"] = nlohmann::json::array();
  for (const auto& prompt : rejected) result["rejected"].push_back({{"id", prompt.id}, {"reason", prompt.reason}});
  return result;
}

void CaptureSummary::measure_set(const std::filesystem::path& directory) {
  const auto reader = data::TraceReader::open(directory);
  total_traces = reader.size();
  total_completion_tokens = reader.completion_tokens();
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() == ".h5") total_bytes += entry.file_size();
  }
}

}  // namespace distill
