#include "data/trace_export.h"

#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/atomic_file.h"
#include "core/error.h"

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

}  // namespace distill::data
