#include "data/trace_export.h"

#include <ATen/ATen.h>

#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/atomic_file.h"
#include "core/error.h"
#include "data/safetensors_writer.h"

namespace distill::data {
namespace {

std::string json_line(const Trace& trace, const TraceProvenance& provenance) {
  const TraceDocument& document = trace.document;
  nlohmann::ordered_json line{{"prompt_id", document.key.prompt_id},
                              {"sample", document.key.sample},
                              {"prompt_length", document.prompt_length},
                              {"reasoning_length", provenance.reasoning_length(document)},
                              {"tokens", document.tokens},
                              {"finish_reason", to_string(document.finish_reason)},
                              {"verdict", to_string(document.verdict)},
                              {"log_probability", document.log_probability},
                              {"seed", document.seed},
                              {"targets", nlohmann::ordered_json::array()}};
  for (size_t i = 0; i < trace.targets.positions(); ++i) {
    const TargetDistribution target = trace.targets[i];
    line["targets"].push_back({{"ids", target.ids}, {"weights", target.weights}, {"uncovered", target.uncovered}});
  }
  return line.dump() + "\n";
}

template <typename T>
void append(std::vector<T>& to, const auto& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

void export_traces(const TraceReader& reader, const std::filesystem::path& path) {
  if (path == "-") {
    for (size_t i = 0; i < reader.size(); ++i) std::cout << json_line(reader.read(i), reader.provenance());
    core::check(std::cout.flush().good(), "cannot write standard output");
    return;
  }
  core::AtomicFile file(path);
  for (size_t i = 0; i < reader.size(); ++i) file.write(json_line(reader.read(i), reader.provenance()));
  file.commit();
}

void export_safetensors(const TraceReader& reader, const std::filesystem::path& path) {
  std::vector<int64_t> token_offsets{0}, sample, prompt_id_offsets{0};
  std::vector<int32_t> tokens, prompt_length;
  std::vector<double> log_probability;
  std::vector<uint8_t> finish_reason, verdict, prompt_ids;
  SparseTargets targets;
  for (size_t i = 0; i < reader.size(); ++i) {
    const auto [document, own] = reader.read(i);
    targets.append(own);
    append(tokens, document.tokens);
    append(prompt_ids, document.key.prompt_id);
    token_offsets.push_back(static_cast<int64_t>(tokens.size()));
    prompt_id_offsets.push_back(static_cast<int64_t>(prompt_ids.size()));
    prompt_length.push_back(document.prompt_length);
    sample.push_back(document.key.sample);
    log_probability.push_back(document.log_probability);
    finish_reason.push_back(static_cast<uint8_t>(document.finish_reason));
    verdict.push_back(static_cast<uint8_t>(document.verdict));
  }
  // Wider types first: every tensor lies aligned.
  write_safetensors(path,
                    {{"token_offsets", at::tensor(token_offsets)},
                     {"sample", at::tensor(sample)},
                     {"prompt_id_offsets", at::tensor(prompt_id_offsets)},
                     {"target_offsets", at::tensor(targets.offsets)},
                     {"log_probability", at::tensor(log_probability)},
                     {"tokens", at::tensor(tokens)},
                     {"prompt_length", at::tensor(prompt_length)},
                     {"target_ids", at::tensor(targets.ids)},
                     {"target_weights", at::tensor(targets.weights)},
                     {"target_uncovered", at::tensor(targets.uncovered)},
                     {"finish_reason", at::tensor(finish_reason)},
                     {"verdict", at::tensor(verdict)},
                     {"prompt_ids", at::tensor(prompt_ids)}},
                    {{"provenance", reader.provenance().to_json().dump()}});
}

}  // namespace distill::data
