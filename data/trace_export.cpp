#include "data/trace_export.h"

#include <ATen/ATen.h>

#include <cstring>
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
at::Tensor tensor_of(const std::vector<T>& values) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, c10::CppTypeToScalarType<T>::value);
  if (!values.empty()) std::memcpy(tensor.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
  return tensor;
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
  std::vector<int64_t> token_offsets{0}, sample, prompt_id_offsets{0}, target_offsets{0};
  std::vector<int32_t> tokens, prompt_length, target_ids;
  std::vector<double> log_probability;
  std::vector<uint8_t> finish_reason, verdict, prompt_ids;
  std::vector<float> target_weights, target_uncovered;
  for (size_t i = 0; i < reader.size(); ++i) {
    const auto [document, targets] = reader.read(i);
    const auto entries = static_cast<int64_t>(target_ids.size());
    append(tokens, document.tokens);
    append(prompt_ids, document.key.prompt_id);
    append(target_ids, targets.ids);
    append(target_weights, targets.weights);
    append(target_uncovered, targets.uncovered);
    for (size_t j = 1; j < targets.offsets.size(); ++j) target_offsets.push_back(entries + targets.offsets[j]);
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
                    {{"token_offsets", tensor_of(token_offsets)},
                     {"sample", tensor_of(sample)},
                     {"prompt_id_offsets", tensor_of(prompt_id_offsets)},
                     {"target_offsets", tensor_of(target_offsets)},
                     {"log_probability", tensor_of(log_probability)},
                     {"tokens", tensor_of(tokens)},
                     {"prompt_length", tensor_of(prompt_length)},
                     {"target_ids", tensor_of(target_ids)},
                     {"target_weights", tensor_of(target_weights)},
                     {"target_uncovered", tensor_of(target_uncovered)},
                     {"finish_reason", tensor_of(finish_reason)},
                     {"verdict", tensor_of(verdict)},
                     {"prompt_ids", tensor_of(prompt_ids)}},
                    {{"provenance", reader.provenance().to_json().dump()}});
}

}  // namespace distill::data
