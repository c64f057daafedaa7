// Encodes documents again and again on one thread and says how fast in processor time, for bench/tokenizer_bench.py.
// Usage: tokenizer_speed MODEL DOCUMENTS.jsonl SECONDS
// Prints {"bytes_per_second": ..., "tokens": ..., "load_seconds": ...}; "tokens" are those of one pass over the
// documents.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/measurement.h"
#include "core/text_file.h"
#include "data/model_files.h"
#include "data/tokenizer.h"

namespace {

using namespace distill;
using bench::processor_seconds;

void run(const std::filesystem::path& model, const std::filesystem::path& documents_path, double seconds) {
  const double load_start = processor_seconds();
  const auto tokenizer =
      model.extension() == ".json" ? data::Tokenizer::from_json_file(model) : data::ModelFiles::open(model).tokenizer();
  const double load_seconds = processor_seconds() - load_start;
  std::vector<std::string> documents;
  core::for_each_json_line(documents_path,
                           [&](size_t, nlohmann::json&& line) { documents.push_back(line.get<std::string>()); });
  double best = 0;
  size_t tokens = 0;
  // The fastest pass counts: others may share the machine.
  for (const double start = processor_seconds(); processor_seconds() - start < seconds;) {
    const double pass_start = processor_seconds();
    size_t bytes = 0;
    tokens = 0;
    for (const std::string& document : documents) {
      tokens += tokenizer->encode(document).size();
      bytes += document.size();
    }
    best = std::max(best, static_cast<double>(bytes) / (processor_seconds() - pass_start));
  }
  const nlohmann::json result = {{"bytes_per_second", best}, {"tokens", tokens}, {"load_seconds", load_seconds}};
  std::printf("%s\n", result.dump().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: tokenizer_speed MODEL DOCUMENTS.jsonl SECONDS\n");
    return 2;
  }
  try {
    run(argv[1], argv[2], std::stod(argv[3]));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tokenizer_speed: %s\n", error.what());
    return 1;
  }
}
