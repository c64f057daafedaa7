#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/commands.h"
#include "core/progress.h"
#include "data/trace_export.h"
#include "data/trace_reader.h"
#include "data/trace_shard.h"
#include "data/trace_statistics.h"

namespace distill::cli {
namespace {

void list_shards(const std::string& path, bool json) {
  const auto reader = data::TraceReader::open(path);
  nlohmann::json rows = nlohmann::json::array();
  if (!json) fmt::print("{:<32} {:>10} {:>12} {:>12} {:>10}\n", "shard", "documents", "prompt", "completion", "size");
  for (const auto& shard : reader.shards()) {
    if (json) {
      rows.push_back({{"path", shard->path().string()},
                      {"documents", shard->size()},
                      {"prompt_tokens", shard->prompt_tokens()},
                      {"completion_tokens", shard->completion_tokens()},
                      {"bytes", shard->file_bytes()},
                      {"codec", shard->codec().description()}});
    } else {
      fmt::print("{:<32} {:>10} {:>12} {:>12} {:>10}\n", shard->path().filename().string(), shard->size(),
                 shard->prompt_tokens(), shard->completion_tokens(),
                 core::format_bytes(static_cast<double>(shard->file_bytes())));
    }
  }
  if (json) fmt::print("{}\n", nlohmann::json{{"shards", rows}, {"provenance", reader.provenance().to_json()}}.dump());
}

void print_statistics(const std::string& path, bool json) {
  const auto statistics = data::measure_traces(data::TraceReader::open(path));
  if (json) {
    fmt::print("{}\n", statistics.dump());
    return;
  }
  const auto& bytes = statistics["bytes_per_token"];
  fmt::print("documents          {}\ncompletion tokens  {}\nprompt tokens      {}\ntargets            {}\n",
             statistics["documents"].get<uint64_t>(), statistics["tokens"].get<uint64_t>(),
             statistics["prompt_tokens"].get<uint64_t>(), statistics["targets"].get<std::string>());
  fmt::print("bytes per token    {:.2f} (ids {:.2f}, weights {:.2f}, tokens {:.2f}, overhead {:.2f})\n",
             bytes["total"].get<double>(), bytes["ids"].get<double>(), bytes["weights"].get<double>(),
             bytes["tokens"].get<double>(), bytes["overhead"].get<double>());
  fmt::print("ids per token      {:.2f}\nmass not covered   {:.4f}\n", statistics["ids_per_token"].get<double>(),
             statistics["uncovered"].get<double>());
}

void verify_shards(const std::string& path) {
  const auto reader = data::TraceReader::open(path);
  data::verify_traces(reader);
  fmt::print("{} documents in {} shards are intact\n", reader.size(), reader.shards().size());
}

}  // namespace

void add_shards_command(CLI::App& app) {
  CLI::App* shards = app.add_subcommand(
      "shards", "Example: distill shards stats traces/\n\nLooks into trace shards and copies them into other forms.");
  shards->require_subcommand(1);
  const auto path = std::make_shared<std::string>();
  const auto add = [&](const char* name, const char* description) {
    CLI::App* command = shards->add_subcommand(name, description);
    command->add_option("traces", *path, "A directory of shards or one shard")->required();
    return command;
  };

  const auto json = std::make_shared<bool>();
  CLI::App* list = add("list", "Example: distill shards list traces/\n\nLists the shards with their sizes.");
  list->add_flag("--json", *json, "Print one JSON object");
  list->callback([=] { list_shards(*path, *json); });

  CLI::App* statistics =
      add("stats", "Example: distill shards stats traces/ --json\n\nSums up documents, tokens and bytes per token.");
  statistics->add_flag("--json", *json, "Print one JSON object");
  statistics->callback([=] { print_statistics(*path, *json); });

  add("verify",
      "Example: distill shards verify traces/\n\nReads everything and checks every checksum; exits with 1 at the first "
      "defect.")
      ->callback([=] { verify_shards(*path); });

  const auto out = std::make_shared<std::string>();
  CLI::App* exported =
      add("export",
          "Example: distill shards export traces/ --out traces.jsonl\n\nWrites every document with its decoded "
          "targets, for other programs.");
  exported->add_option("--out", *out, "File to write; - is standard output")->required();
  exported->callback([=] { data::export_traces(data::TraceReader::open(*path), *out); });
}

}  // namespace distill::cli
