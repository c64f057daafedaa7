#include "data/trace_export.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>
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

// The tensors of hidden states as they are stored: [scales,] values.
NamedTensors hidden_tensors(const HiddenStatesSpec& spec, std::vector<std::byte>& stored) {
  const auto bytes = static_cast<int64_t>(spec.state_bytes()), scales = static_cast<int64_t>(4 * spec.scales());
  const at::Tensor states = at::from_blob(stored.data(), {static_cast<int64_t>(stored.size())}, at::kByte)
                                .view({static_cast<int64_t>(stored.size() / spec.position_bytes()),
                                       static_cast<int64_t>(spec.layers.size()), bytes});
  const at::Tensor values = states.narrow(2, scales, bytes - scales).contiguous();
  if (scales == 0) return {{"hidden_states", values.view(at::kBFloat16)}};
  return {{"hidden_scales", states.narrow(2, 0, scales).contiguous().view(at::kFloat)},
          {"hidden_states", values.view(at::kFloat8_e4m3fn)}};
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
  std::vector<std::byte> hidden;
  SparseTargets targets;
  for (size_t i = 0; i < reader.size(); ++i) {
    const Trace trace = reader.read(i);
    const TraceDocument& document = trace.document;
    targets.append(trace.targets);
    append(hidden, reader.hidden_states(i));
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
  NamedTensors tensors{{"token_offsets", at::tensor(token_offsets)},
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
                       {"prompt_ids", at::tensor(prompt_ids)}};
  if (reader.provenance().hidden_states) append(tensors, hidden_tensors(*reader.provenance().hidden_states, hidden));
  // Wider types first: every tensor lies aligned.
  std::ranges::stable_sort(tensors, std::greater(),
                           [](const auto& named) { return c10::elementSize(named.second.scalar_type()); });
  write_safetensors(path, tensors, {{"provenance", reader.provenance().to_json().dump()}});
}

}  // namespace distill::data
